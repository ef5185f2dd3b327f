"use strict";

// Episodes to scrub through. Everything shown follows from two numbers: the episode and the step.
const data = JSON.parse(document.getElementById("data")?.textContent ?? "null");
if (data) {
  const UNITS = 10000; // of a chart's coordinates in either direction
  const N_THUMBNAILS = 12;
  const MS_PER_STEP = 50;
  const at = (id) => document.getElementById(id);
  const [chooser, slider, play, normalized] = ["episode", "step", "play", "normalized"].map(at);
  let episode = data.episodes[0];
  let parts = []; // what is drawn: a function each, called with the step
  let timer = null;

  const element = (tag, parent, className = "", text = "") => {
    const made = parent.appendChild(document.createElement(tag));
    if (className) made.className = className;
    if (text) made.textContent = text;
    return made;
  };
  const svgElement = (tag, parent, attributes) => {
    const made = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const jpeg = (content) => `data:image/jpeg;base64,${content}`;
  const sampleAt = (step) => Math.floor(step / episode.stride);
  const number = (value) => (value === null || value === undefined ? "–" : String(+value.toPrecision(4)));

  // A path through points; null interrupts it.
  const pathOf = (points) => {
    let path = "";
    let pen = "M";
    for (const [x, y] of points) {
      if (x === null || y === null) {
        pen = "M";
        continue;
      }
      path += `${pen}${x} ${y}`;
      if (pen === "M") path += `h0`; // a single point is a dot
      pen = "L";
    }
    return path;
  };

  const ticksOf = (low, high) => {
    const rough = (high - low) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => power * m >= rough);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
    return ticks;
  };

  const widened = ([low, high]) => {
    if (low === null) return [-1, 1];
    const margin = high > low ? 0.04 * (high - low) : Math.abs(low) / 2 || 1;
    return [low - margin, high + margin];
  };

  const drawChart = (key) => {
    const asPolicy = normalized.checked && key.scale !== null;
    const values = episode.values[key.name].map((column, dim) =>
      asPolicy
        ? column.map((v) => (v === null ? null : v * key.scale[dim] + key.offset[dim]))
        : column,
    );
    const [low, high] = asPolicy ? [-1.05, 1.05] : widened(key.range);
    const last = Math.max(episode.length - 1, 1);
    const x = (step) => Math.round((UNITS * step) / last);
    const y = (value) => (value === null ? null : Math.round((UNITS * (high - value)) / (high - low)));

    const figure = element("figure", at("charts"), "chart");
    const caption = element("figcaption", figure);
    element("b", caption, "", key.name);
    const plot = element("div", figure, "plot");
    const svg = svgElement("svg", plot, { viewBox: `0 0 ${UNITS} ${UNITS}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    const ticks = ticksOf(low, high);
    svgElement("path", svg, { class: "grid", d: ticks.map((t) => `M0 ${y(t)}H${UNITS}`).join("") });
    for (const tick of ticks) {
      element("span", plot, "y", number(tick)).style.top = `${(100 * y(tick)) / UNITS}%`;
    }
    for (const tick of ticksOf(0, last).filter(Number.isInteger)) {
      element("span", plot, "x", number(tick)).style.left = `${(100 * tick) / last}%`;
    }
    const labels = values.map((column, dim) => {
      const colour = `var(--d${dim % 8})`;
      const points = column.map((v, i) => [x(i * episode.stride), y(v)]);
      svgElement("path", svg, { class: "line", d: pathOf(points) }).style.setProperty("--stroke", colour);
      const label = element("span", caption, "key");
      label.style.setProperty("--stroke", colour);
      return label;
    });
    const cursor = element("div", plot, "cursor");
    const seek = (event) => {
      if (event.type === "pointermove" && event.buttons === 0) return;
      const box = plot.getBoundingClientRect();
      show(Math.round(((event.clientX - box.left) / box.width) * last));
    };
    plot.addEventListener("pointerdown", seek);
    plot.addEventListener("pointermove", seek);
    parts.push((step) => {
      cursor.style.left = `${(100 * step) / last}%`;
      labels.forEach((label, dim) => {
        label.textContent = `${key.dims[dim]} ${number(values[dim][sampleAt(step)])}`.trim();
      });
    });
  };

  // Where a two-dimensional key goes; both axes have one scale.
  const drawPath = (key) => {
    const [[left, right], [top, bottom]] = key.dimRanges.map(widened);
    const size = Math.max(right - left, bottom - top);
    const scaled = (value, low, high) =>
      value === null ? null : Math.round((UNITS * (value - (low + high) / 2)) / size) + UNITS / 2;
    const [xs, ys] = episode.values[key.name];
    const points = xs.map((v, i) => [scaled(v, left, right), scaled(ys[i], top, bottom)]);
    const figure = element("figure", at("stage"));
    const svg = svgElement("svg", figure, { viewBox: `0 0 ${UNITS} ${UNITS}`, role: "img", "aria-label": `path of ${key.name}` });
    svgElement("path", svg, { class: "whole", d: pathOf(points) });
    const past = svgElement("path", svg, { class: "past" });
    const here = svgElement("path", svg, { class: "here" });
    element("figcaption", figure, "", `${key.name}: ${key.dims[0]} to the right, ${key.dims[1]} down`);
    parts.push((step) => {
      const i = sampleAt(step);
      past.setAttribute("d", pathOf(points.slice(0, i + 1)));
      here.setAttribute("d", pathOf([points[i]]));
    });
  };

  // Scrolls the strip and nothing else, where a narrow screen cuts it off.
  const bringIntoView = (button, strip) => {
    const [from, shown] = [button.getBoundingClientRect(), strip.getBoundingClientRect()];
    if (from.left < shown.left) strip.scrollLeft += from.left - shown.left;
    if (from.right > shown.right) strip.scrollLeft += from.right - shown.right;
  };

  const drawPictures = (name, { steps, jpeg: pictures }) => {
    if (steps.length === 0) return;
    const figure = element("figure", at("stage"));
    const image = element("img", figure);
    image.alt = name;
    const caption = element("figcaption", figure);
    const nearest = (step) => {
      let best = 0;
      steps.forEach((s, i) => {
        if (Math.abs(s - step) < Math.abs(steps[best] - step)) best = i;
      });
      return best;
    };
    const n = Math.min(steps.length, N_THUMBNAILS);
    const shown = [...Array(n).keys()].map((i) => Math.round((i * (steps.length - 1)) / Math.max(n - 1, 1)));
    const thumbnails = shown.map((i) => {
      const button = element("button", at("strip"));
      button.type = "button";
      button.title = `${name}, step ${steps[i]}`;
      const small = element("img", button);
      small.alt = button.title;
      small.src = jpeg(pictures[i]);
      button.addEventListener("click", () => show(steps[i]));
      return { button, step: steps[i] };
    });
    parts.push((step) => {
      const i = nearest(step);
      image.src = jpeg(pictures[i]);
      caption.textContent = `${name}, step ${steps[i]}`;
      const closest = thumbnails.reduce((a, b) => (Math.abs(b.step - step) < Math.abs(a.step - step) ? b : a));
      for (const { button } of thumbnails) button.classList.toggle("here", button === closest.button);
      // of several cameras the first: the strip shows one place
      if (thumbnails[0].button === at("strip").firstChild) bringIntoView(closest.button, at("strip"));
    });
  };

  const show = (step) => {
    const last = episode.length - 1;
    slider.value = Math.min(Math.max(step, 0), last);
    at("where").textContent = `step ${slider.value} of ${last}`;
    for (const part of parts) part(Number(slider.value));
  };

  const draw = () => {
    parts = [];
    for (const id of ["stage", "strip", "charts"]) at(id).replaceChildren();
    for (const [name, pictures] of Object.entries(episode.pictures)) drawPictures(name, pictures);
    for (const key of data.keys) if (key.dims.length === 2) drawPath(key);
    for (const key of data.keys) drawChart(key);
    show(Number(slider.value));
  };

  const open = (position, step = 0) => {
    chooser.selectedIndex = position;
    episode = data.episodes[position];
    at("previous").disabled = position === 0;
    at("next").disabled = position === data.episodes.length - 1;
    slider.max = episode.length - 1;
    slider.value = step;
    draw();
  };

  const pause = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };

  chooser.addEventListener("change", () => open(chooser.selectedIndex));
  at("previous").addEventListener("click", () => open(chooser.selectedIndex - 1));
  at("next").addEventListener("click", () => open(chooser.selectedIndex + 1));
  slider.addEventListener("input", () => show(Number(slider.value)));
  normalized.addEventListener("change", draw);
  play.addEventListener("click", () => {
    if (timer !== null) return pause();
    if (Number(slider.value) === episode.length - 1) show(0);
    play.textContent = "Pause";
    timer = setInterval(() => {
      show(Number(slider.value) + 1);
      if (Number(slider.value) === episode.length - 1) pause();
    }, MS_PER_STEP);
  });
  for (const button of document.querySelectorAll(".findings button")) {
    button.addEventListener("click", () => {
      open(Number(button.dataset.episode), Number(button.dataset.step));
      at("player").scrollIntoView({ behavior: "smooth" });
    });
  }
  open(0);
}
