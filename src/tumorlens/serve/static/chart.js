// Probabilities along the slices of a volume, as an SVG chart; click or drag to choose a slice.

import { draw, make } from "./dom.js";
import { className, percent, stateOf } from "./words.js";

const HEIGHT = 168, LEFT = 42, RIGHT = 10, TOP = 8, BOTTOM = 46; // pixels; the verdicts are below the axis
const NO_TUMOUR = "notumor";

/** A figure for `rows`; `choose(i)` is called when a slice is clicked. The figure's `show(i)` moves the cursor. */
export function chartOf(rows, classes, choose) {
  const svg = draw("svg", { class: "chart", role: "img", "aria-label": summary(rows, classes) });
  const figure = make("figure", { class: "along" }, legend(classes), svg);
  let at = 0, width = 0;
  const x = (i) => LEFT + (rows.length > 1 ? (i / (rows.length - 1)) * (width - LEFT - RIGHT) : 0);
  const paint = () => {
    width = Math.max(240, svg.clientWidth || 600);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.replaceChildren(...axes(width, rows, x), ...strip(rows, x, width),
      ...classes.flatMap((name, k) => lines(rows, name, k, x)),
      draw("line", { class: "cursor", y1: TOP, y2: HEIGHT - 18 }));
    figure.show(at);
  };
  figure.show = (i) => {
    at = i;
    const cursor = svg.querySelector(".cursor");
    cursor?.setAttribute("x1", x(i));
    cursor?.setAttribute("x2", x(i));
  };
  const point = (event) => {
    const share = (event.offsetX - LEFT) / (width - LEFT - RIGHT);
    choose(Math.min(rows.length - 1, Math.max(0, Math.round(share * (rows.length - 1)))));
  };
  svg.addEventListener("pointerdown", (event) => { svg.setPointerCapture(event.pointerId); point(event); });
  svg.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  new ResizeObserver(() => { if (svg.clientWidth && svg.clientWidth !== width) paint(); }).observe(svg);
  paint();
  return figure;
}

const y = (p) => TOP + (1 - p) * (HEIGHT - TOP - BOTTOM);

function axes(width, rows, x) {
  const levels = [0, 0.5, 1].flatMap((p) => [
    draw("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(p), y2: y(p) }),
    draw("text", { x: LEFT - 6, y: y(p) + 4, "text-anchor": "end" }, `${100 * p} %`),
  ]);
  return [...levels,
    draw("text", { x: x(0), y: HEIGHT - 4 }, `slice ${number(rows, 0)}`),
    draw("text", { x: x(rows.length - 1), y: HEIGHT - 4, "text-anchor": "end" }, number(rows, rows.length - 1))];
}

/** The number of a slice: the one in its file, if any. */
const number = (rows, i) => `${Number.isInteger(rows[i].slice) ? rows[i].slice + 1 : i + 1}`;

/** One mark per slice: tall and filled for ok, a short frame for uncertain, a low dash for refused or failed. */
function strip(rows, x, width) {
  const wide = Math.max(1.5, Math.min(8, (width - LEFT - RIGHT) / rows.length - 1.5));
  const base = HEIGHT - 20;
  return rows.map((row, i) => {
    const state = stateOf(row);
    const tall = { ok: 14, uncertain: 8, refused: 2, error: 2 }[state];
    return draw("rect", { class: `tick ${state}`, x: x(i) - wide / 2, y: base - tall, width: wide, height: tall });
  });
}

/** One line per class, interrupted where a slice has no probabilities; a single slice is a dot. */
function lines(rows, name, k, x) {
  const runs = [[]];
  rows.forEach((row, i) => {
    if (row.probabilities) runs.at(-1).push([x(i), y(row.probabilities[name])]);
    else runs.push([]);
  });
  return runs.filter((run) => run.length).map((run) => (run.length === 1
    ? draw("circle", { class: `dot c${k % 6}`, cx: run[0][0], cy: run[0][1], r: 2.5 })
    : draw("polyline", { class: `line c${k % 6} d${k % 4}`, points: pointsOf(run) })));
}

const pointsOf = (run) => run.map(([across, down]) => `${across.toFixed(1)},${down.toFixed(1)}`).join(" ");

function legend(classes) {
  const sample = (k) => draw("svg", { viewBox: "0 0 28 8", class: "swatch", "aria-hidden": "true" },
    draw("line", { class: `line c${k % 6} d${k % 4}`, x1: 0, x2: 28, y1: 4, y2: 4 }));
  const tick = (state, tall) => draw("svg", { viewBox: "0 0 10 14", class: "swatch narrow", "aria-hidden": "true" },
    draw("rect", { class: `tick ${state}`, x: 1, y: 14 - tall, width: 7, height: tall }));
  return make("ul", { class: "legend" },
    ...classes.map((name, k) => make("li", {}, sample(k), className(name))),
    make("li", {}, tick("ok", 14), "ok"), make("li", {}, tick("uncertain", 8), "uncertain"),
    make("li", {}, tick("refused", 2), "refused"));
}

/** The chart as text for screen readers. */
function summary(rows, classes) {
  const found = rows.map(stateOf);
  const counts = ["ok", "uncertain", "refused", "error"].map((state) => [found.filter((one) => one === state).length, state]);
  const states = counts.filter(([n]) => n).map(([n, state]) => `${n} ${state}`).join(", ");
  const peaks = classes.filter((name) => name !== NO_TUMOUR).map((name) => {
    const top = Math.max(...rows.map((row) => row.probabilities?.[name] ?? 0));
    const at = rows.findIndex((row) => (row.probabilities?.[name] ?? 0) === top);
    return `${className(name)} at most ${percent(top)}, at slice ${number(rows, at)}`;
  });
  return `Probability of each class along ${rows.length} slices: ${states}. ${peaks.join("; ")}.`;
}
