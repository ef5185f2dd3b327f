"use strict";

// Charts: read the values under the pointer back from the curves' coordinates.
const UNITS = 100000;

function enhanceChart(chart) {
  const plot = chart.querySelector(".plot");
  const [x0, x1] = chart.dataset.x.split(",").map(Number);
  const isLog = chart.dataset.log === "1";
  const [y0, y1] = chart.dataset.y.split(",").map(Number).map(isLog ? Math.log10 : Number);
  const toStep = (x) => Math.round(x0 + (x / UNITS) * (x1 - x0));
  const toValue = (y) => {
    const value = y1 + (y / UNITS) * (y0 - y1);
    return isLog ? 10 ** value : value;
  };
  const read = (path) =>
    path
      .getAttribute("d")
      .slice(1)
      .replace("Z", "")
      .split("L")
      .map((p) => p.split(" ").map(Number));
  // A curve may be drawn in stretches, and over a band: upper edge from left to right, then back.
  const byLabel = new Map();
  for (const path of chart.querySelectorAll(".line, .band")) {
    const { label, note } = path.dataset;
    if (!byLabel.has(label)) byLabel.set(label, { label, points: [], band: [] });
    const curve = byLabel.get(label);
    const [kind, ...style] = path.classList;
    if (kind === "band") {
      const edges = read(path);
      const n = edges.length / 2;
      curve.band = edges.slice(0, n).map(([x, y], i) => [x, y, edges[2 * n - 1 - i][1]]);
      continue;
    }
    curve.style = style.filter((name) => name !== "partial").join(" ");
    for (const [x, y] of read(path)) curve.points.push([x, y, note ?? ""]);
  }
  const curves = [...byLabel.values()].reverse();
  for (const curve of curves) {
    // Where two stretches meet, the point is in both: the one without a note says what it is.
    curve.points.sort((a, b) => a[0] - b[0] || b[2].length - a[2].length);
    curve.points = curve.points.filter((point, i, all) => all[i + 1]?.[0] !== point[0]);
  }
  const cursor = plot.appendChild(document.createElement("div"));
  const tip = plot.appendChild(document.createElement("div"));
  cursor.className = "cursor";
  tip.className = "tip";
  cursor.hidden = tip.hidden = true;

  const nearest = (points, x) => {
    let low = 0;
    let high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] <= x) low = middle;
      else high = middle;
    }
    return x - points[low][0] < points[high][0] - x ? points[low] : points[high];
  };

  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const x = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * UNITS;
    const found = curves.map((curve) => nearest(curve.points, x));
    const at = nearest([...found].sort((a, b) => a[0] - b[0]), x)[0];
    tip.replaceChildren(`step ${toStep(at).toLocaleString("en")}`);
    curves.forEach((curve, i) => {
      const line = tip.appendChild(document.createElement("div"));
      line.className = `key ${curve.style}`;
      const [x, y, note] = found[i];
      const edges = curve.band.length ? nearest(curve.band, x) : null;
      const notes = [
        edges && `${toValue(edges[2]).toPrecision(4)} to ${toValue(edges[1]).toPrecision(4)}`,
        note,
        Math.abs(x - at) > UNITS / 500 && `step ${toStep(x).toLocaleString("en")}`,
      ].filter(Boolean);
      line.textContent =
        `${curve.label} ${toValue(y).toPrecision(4)}` + (notes.length ? ` (${notes.join(", ")})` : "");
    });
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${(100 * at) / UNITS}%`;
    const left = (at / UNITS) * box.width;
    const space = box.width - tip.offsetWidth;
    const beside = left < box.width / 2 ? left + 10 : left - tip.offsetWidth - 10;
    tip.style.left = `${Math.max(Math.min(beside, space), 0)}px`;
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => {
    cursor.hidden = tip.hidden = true;
  });
}

// Tables: a click on a heading sorts by that column, a second click the other way round.
function sortTable(table, column, direction) {
  const headings = [...table.tHead.rows[0].cells];
  for (const heading of headings) heading.removeAttribute("aria-sort");
  headings[column].setAttribute("aria-sort", direction);
  const valueOf = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [p, q] = [valueOf(a), valueOf(b)];
    const order = p - q;
    const sign = direction === "descending" ? -1 : 1;
    return (Number.isNaN(order) ? p.localeCompare(q) : order) * sign;
  });
  table.tBodies[0].append(...rows);
}

function enhanceTable(table) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const sorted = heading.getAttribute("aria-sort");
      sortTable(table, column, sorted === "ascending" ? "descending" : "ascending");
    });
  });
}

// Videos: play while visible, unless the reader prefers a still page or pressed the button. A click
// pauses one of them; the browser's own controls would hide most of such a small picture.
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
const visible = new Set();
const play = (video) => video.play().catch(() => {});
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) visible.add(target);
    else visible.delete(target);
    if (isIntersecting && playing) play(target);
    else target.pause();
  }
});

function enhanceVideo(video) {
  video.controls = false;
  video.tabIndex = 0;
  const toggle = () => (video.paused ? play(video) : video.pause());
  video.addEventListener("click", toggle);
  video.addEventListener("keydown", (event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    toggle();
  });
  observer.observe(video);
}

function enhancePlayAll(button) {
  const label = () => {
    button.textContent = playing ? "Pause all" : "Play all";
  };
  button.addEventListener("click", () => {
    playing = !playing;
    label();
    for (const video of visible) {
      if (playing) play(video);
      else video.pause();
    }
  });
  label();
  button.hidden = false;
}

function enhancePlayLink(link) {
  link.addEventListener("click", () => {
    const video = document.getElementById(link.dataset.play).querySelector("video");
    video.currentTime = 0;
    play(video);
  });
}

// Brings a page, or a part that is new in it, to life.
function enhance(root) {
  root.querySelectorAll(".chart").forEach(enhanceChart);
  root.querySelectorAll("table.sortable").forEach(enhanceTable);
  root.querySelectorAll(".gallery video").forEach(enhanceVideo);
  root.querySelectorAll("#play-all").forEach(enhancePlayAll);
  root.querySelectorAll("[data-play]").forEach(enhancePlayLink);
}

// Lets go of a part that leaves the page.
function forget(root) {
  for (const video of root.querySelectorAll("video")) {
    observer.unobserve(video);
    visible.delete(video);
  }
}

enhance(document);
