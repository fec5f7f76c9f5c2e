// One result: verdict, picture under its heatmap, class bars, and a slider if there are several slices.

import { volumeRule } from "./api.js";
import { chartOf } from "./chart.js";
import { byId, make, mark } from "./dom.js";
import { firstSlice, knownPicture, pictureOf } from "./results.js";
import { brief, className, percent, share, stateOf, verdictWords } from "./words.js";

const SETTLE = 120; // ms without movement of the slider before a picture is fetched
const view = { on: true, opacity: 60, name: null }; // kept from result to result; name null: the predicted class
let stop = new AbortController();
let serial = 0; // in ids that labels refer to

/** Show a result; `classes` are the model's, `pictured` is called when a picture was fetched. */
export function show(result, classes, pictured) {
  byId("intro").hidden = true;
  byId("result-title").textContent = result.name;
  const parts = result.rows.length > 1 || result.wholes.length ? several(result, classes, pictured) : one(result, classes, pictured);
  byId("prediction").replaceChildren(...parts);
  byId("prediction").hidden = false;
}

/** Back to the introduction. */
export function showNothing() {
  stop.abort();
  byId("intro").hidden = false;
  byId("prediction").hidden = true;
  byId("prediction").replaceChildren();
  byId("result-title").textContent = "How to read a prediction";
}

function one(result, classes, pictured) {
  const [row] = result.rows;
  const again = result.again && make("button", { type: "button", onclick: result.again }, "Try again");
  if (stateOf(row) === "error") return [verdict(row, result), again].filter(Boolean);
  const slice = sliceView(result, classes, pictured);
  slice.show(row);
  return [verdict(row, result), slice];
}

function several(result, classes, pictured) {
  const { rows, wholes } = result;
  const slice = sliceView(result, classes, pictured);
  const sliceVerdict = make("div");
  const choose = (i) => {
    slider.value = i;
    const n = number(rows[i], i); // as in the file, which may start at any number
    const text = n === i + 1 ? `Slice ${n} of ${rows.length}` : `Slice ${n} (${i + 1} of ${rows.length})`;
    slider.setAttribute("aria-valuetext", `${text}: ${brief(rows[i])}`);
    place.textContent = text;
    chart.show(i);
    sliceVerdict.replaceChildren(verdict(rows[i], result, true));
    slice.show(rows[i]);
  };
  const place = make("output", { for: "slice" });
  const slider = make("input", {
    type: "range", id: "slice", min: 0, max: rows.length - 1, step: 1, oninput: () => choose(+slider.value),
  });
  const chart = chartOf(rows, classes, choose);
  const parts = [
    ...wholes.map((whole) => verdict(whole, result)),
    wholes.length > 0 && make("p", { class: "quiet small" }, volumeRule),
    ...result.notes.map((note) => verdict({ ...note, title: "Not everything was read" }, result, true)),
    make("h3", {}, "Probability by slice"),
    chart,
    make("div", { class: "slider" }, make("label", { for: "slice" }, "Slice"), slider, place),
    sliceVerdict, slice,
  ];
  choose(firstSlice(result));
  return parts.filter(Boolean);
}

const number = (row, i) => (Number.isInteger(row.slice) ? row.slice + 1 : i + 1);

/** "Whole volume", or "Volume 2 of 3". */
function wholeOf(row, { wholes }) {
  return wholes.length > 1 ? `Volume ${wholes.indexOf(row) + 1} of ${wholes.length}` : "Whole volume";
}

function verdict(row, result, small = false) {
  const { state, head, text, cure } = verdictWords(row, result.options.coverage);
  return make("div", { class: `verdict ${state}${small ? " small" : ""}` }, mark(state),
    make("div", {}, make("p", { class: "head" }, small || row.kind !== "volume" ? head : `${wholeOf(row, result)}: ${head}`),
      make("p", {}, text), cure ? make("p", {}, make("strong", {}, "What to do: "), cure) : null,
      state === "error" || small ? null : make("p", { class: "research" }, "For research, not for diagnosis.")));
}

/** Picture and bars; `show(row)` fills them. */
function sliceView(result, classes, pictured) {
  const image = make("img", { class: "slice", alt: "", width: 224, height: 224 });
  const heat = make("img", { class: "heat", alt: "", width: 224, height: 224 });
  const missing = make("p", { class: "missing" });
  const light = make("div", { class: "light" }, image, heat, missing);
  const caption = make("figcaption", { class: "quiet small" });
  const controls = make("fieldset", { class: "controls" });
  const facts = make("div", { class: "facts" });
  const element = make("div", { class: "view" }, make("figure", {}, light, caption, controls), facts);
  let row = null, timer = 0;

  const blend = () => {
    heat.hidden = !view.on || !heat.hasAttribute("src");
    heat.style.opacity = view.opacity / 100;
  };
  const put = (picture, name) => {
    light.classList.remove("loading");
    image.hidden = !picture;
    missing.hidden = Boolean(picture);
    missing.textContent = picture ? "" : "No picture available.";
    if (picture) Object.assign(image, { src: picture.image, alt: `${result.name}: the image that the network received` });
    if (picture?.heatmap) heat.src = picture.heatmap;
    else heat.removeAttribute("src");
    const bright = picture?.heatmap ? ` Bright regions supported ${className(name)}.` : "";
    caption.textContent = picture ? `224 × 224 pixels, the network's input.${bright}` : "";
    blend();
  };
  const load = async (wait) => {
    stop.abort();
    stop = new AbortController();
    clearTimeout(timer);
    const [{ signal }, shown] = [stop, row];
    const name = row.class && (view.name ?? row.class);
    const known = knownPicture(result, row, name);
    if (known) return put(known, name);
    light.classList.add("loading");
    timer = setTimeout(async () => {
      try {
        const picture = await pictureOf(result, shown, name, signal);
        if (signal.aborted) return;
        put(picture, name);
        if (picture) pictured();
      } catch (error) {
        if (error.name === "AbortError") return;
        put(null);
        missing.textContent = `${error.title}. ${error.cure}`;
      }
    }, wait);
  };
  element.show = (next) => {
    row = next;
    controls.replaceChildren(...(row.class ? heatControls(row, classes, blend, () => load(0)) : []));
    controls.hidden = !row.class;
    facts.replaceChildren(...(row.probabilities ? bars(row, classes, result.options.coverage) : []));
    load(SETTLE);
  };
  return element;
}

function heatControls(row, classes, blend, reload) {
  const id = ++serial;
  const shown = make("output", { for: `opacity-${id}` }, `${view.opacity} %`);
  const on = make("input", { type: "checkbox", id: `heat-${id}`, onchange: () => { view.on = on.checked; blend(); } });
  on.checked = view.on;
  const opacity = make("input", {
    type: "range", id: `opacity-${id}`, min: 0, max: 100, step: 5, value: view.opacity,
    oninput: () => { view.opacity = +opacity.value; shown.textContent = `${view.opacity} %`; blend(); },
  });
  const select = make("select", { id: `class-${id}`, onchange: () => { view.name = select.value || null; reload(); } },
    make("option", { value: "" }, `Most probable (${className(row.class)})`),
    ...classes.map((name) => make("option", { value: name, selected: name === view.name }, className(name))));
  return [
    make("legend", {}, "Heatmap"),
    make("label", { class: "check", for: `heat-${id}` }, on, " Show"),
    make("label", { for: `opacity-${id}` }, "Opacity"), make("span", { class: "range" }, opacity, shown),
    make("label", { for: `class-${id}` }, "Class"), select,
    make("p", { class: "ramp quiet small" }, make("span", {}, "less"), make("i", { "aria-hidden": "true" }), make("span", {}, "more")),
  ];
}

/** Each class with its probability, with those in the prediction set also marked by text. */
function bars(row, classes, coverage) {
  const table = make("table", { class: "bars" },
    make("caption", {}, "Calibrated probability"),
    make("thead", { class: "hidden-text" }, make("tr", {},
      ...["Class", "Probability", "Prediction set"].map((text) => make("th", { scope: "col" }, text)))),
    make("tbody", {}, ...classes.map((name) => {
      const [p, inside] = [row.probabilities[name], row.set.includes(name)];
      const bar = make("i", { "aria-hidden": "true" });
      bar.style.width = `${100 * p}%`;
      return make("tr", { class: inside ? "in" : "out" },
        make("th", { scope: "row" }, className(name), make("span", { class: "bar" }, bar)),
        make("td", { class: "n" }, percent(p)), make("td", { class: "set" }, inside ? "✓ in set" : "–"));
    })));
  const names = row.set.map(className).join(", ");
  return [table,
    make("p", {}, make("strong", {}, `${share(coverage)} prediction set: `), names ? `${names}.` : "empty."),
    Number.isFinite(row.score) && make("p", { class: "quiet small" },
      `Distance from the training images: ${row.score.toFixed(2)} standard deviations (0 is the mean of validation images).`),
  ].filter(Boolean);
}
