// The list of predictions since the page was opened.

import { byId, make, mark } from "./dom.js";
import { chief, thumbnail } from "./results.js";
import { brief, count, stateOf } from "./words.js";

const LISTED = 200; // the newest; downloads contain all
const results = [];
let current = null;

export const all = () => results;

export function add(result) {
  results.push(result);
}

export function clear() {
  results.length = 0;
  current = null;
}

/** Draw the list; `open` is called with the chosen result. */
export function list(open, chosen = current) {
  current = chosen;
  const focused = document.activeElement?.dataset?.id;
  byId("entries").replaceChildren(...results.slice(-LISTED).reverse().map((result) => entry(result, open)));
  if (focused) byId("entries").querySelector(`[data-id="${focused}"]`)?.focus();
  byId("history-empty").hidden = results.length > 0;
  byId("history-tools").hidden = !results.length;
  byId("history-more").hidden = results.length <= LISTED;
  byId("history-more").textContent = `And ${count(Math.max(0, results.length - LISTED))} older ones, which the downloads also contain.`;
}

function entry(result, open) {
  const row = chief(result);
  const image = thumbnail(result);
  const volumes = result.wholes.length > 1 ? `, ${count(result.wholes.length)} volumes` : "";
  const slices = result.rows.length > 1 ? `, ${count(result.rows.length)} slices${volumes}` : "";
  return make("li", {}, make("button", {
    type: "button", "data-id": result.id, "aria-current": result === current ? "true" : null, onclick: () => open(result),
  },
  image ? make("img", { src: image, alt: "", width: 44, height: 44 }) : make("span", { class: "blank" }),
  make("span", { class: "text" }, make("span", { class: "name" }, `${result.name}${slices}`),
    make("span", { class: "brief" }, mark(stateOf(row)), make("span", {}, brief(row))))));
}
