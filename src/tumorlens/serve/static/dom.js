// Builds elements. Text is inserted as text, so that no file name can become markup.

/** An element with attributes, `on…` listeners and children; null children are omitted. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

const MARKS = {
  ok: ["M12 2a10 10 0 1 0 0 20 10 10 0 0 0 0-20z", "m7.5 12.5 3 3 6-6.5"],
  uncertain: ["M12 2.5 22.5 21h-21z", "M12 9v5.5m0 2.6v.6"],
  refused: ["M8 2h8l6 6v8l-6 6H8l-6-6V8z", "M7.5 12h9"],
  error: ["M3 3h18v18H3z", "m8 8 8 8m0-8-8 8"],
};

/** The icon of a verdict; the outlines differ, so that colour is not needed to distinguish them. */
export function mark(state) {
  const [outline, stroke] = MARKS[state];
  return draw("svg", { viewBox: "0 0 24 24", class: `mark ${state}`, "aria-hidden": "true" },
    draw("path", { d: outline, class: "shape" }), draw("path", { d: stroke, class: "stroke" }));
}
