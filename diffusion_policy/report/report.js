"use strict";

// Charts: read the values under the pointer back from the curves' coordinates.
for (const chart of document.querySelectorAll(".chart")) {
  const UNITS = 100000;
  const plot = chart.querySelector(".plot");
  const [x0, x1] = chart.dataset.x.split(",").map(Number);
  const isLog = chart.dataset.log === "1";
  const [y0, y1] = chart.dataset.y.split(",").map(Number).map(isLog ? Math.log10 : Number);
  const toStep = (x) => Math.round(x0 + (x / UNITS) * (x1 - x0));
  const toValue = (y) => {
    const value = y1 + (y / UNITS) * (y0 - y1);
    return isLog ? 10 ** value : value;
  };
  const curves = [...chart.querySelectorAll(".line")].reverse().map((path) => ({
    label: path.dataset.label,
    style: path.classList[1],
    points: path.getAttribute("d").slice(1).split("L").map((p) => p.split(" ").map(Number)),
  }));
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
      const away = Math.abs(found[i][0] - at) > UNITS / 500;
      line.textContent =
        `${curve.label} ${toValue(found[i][1]).toPrecision(4)}` +
        (away ? ` (step ${toStep(found[i][0]).toLocaleString("en")})` : "");
    });
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${(100 * at) / UNITS}%`;
    const left = (at / UNITS) * box.width;
    const space = box.width - tip.offsetWidth;
    tip.style.left = `${left < box.width / 2 ? Math.min(left + 10, space) : Math.max(left - tip.offsetWidth - 10, 0)}px`;
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => {
    cursor.hidden = tip.hidden = true;
  });
}

// Tables: a click on a heading sorts by that column, a second click the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const valueOf = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
  headings.forEach((heading, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const [p, q] = [valueOf(a, i), valueOf(b, i)];
        const order = p - q;
        return (Number.isNaN(order) ? p.localeCompare(q) : order) * (descending ? -1 : 1);
      });
      body.append(...rows);
    });
  });
}

// Videos: play while visible, unless the reader prefers a still page or pressed the button. A click
// pauses one of them; the browser's own controls would hide most of such a small picture.
const videos = [...document.querySelectorAll(".gallery video")];
const playAll = document.getElementById("play-all");
if (playAll) {
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const visible = new Set();
  const play = (video) => video.play().catch(() => {});
  const label = () => {
    playAll.textContent = playing ? "Pause all" : "Play all";
  };
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) visible.add(target);
      else visible.delete(target);
      if (isIntersecting && playing) play(target);
      else target.pause();
    }
  });
  for (const video of videos) {
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
  playAll.addEventListener("click", () => {
    playing = !playing;
    label();
    for (const video of visible) {
      if (playing) play(video);
      else video.pause();
    }
  });
  label();
  playAll.hidden = false;
  for (const link of document.querySelectorAll("[data-play]")) {
    link.addEventListener("click", () => {
      const video = document.getElementById(link.dataset.play).querySelector("video");
      video.currentTime = 0;
      play(video);
    });
  }
}
