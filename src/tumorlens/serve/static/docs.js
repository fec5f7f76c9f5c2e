// The page /docs: draws the API description, as the usual viewers load scripts from other hosts.

import { byId, make } from "./dom.js";

const code = (text) => make("code", {}, text);

/** The values that a parameter takes, in words. */
function values({ type, enum: names, anyOf = [], exclusiveMinimum: above, exclusiveMaximum: below, minimum, maximum }) {
  const other = anyOf.find((one) => one.type !== "null");
  if (other) return values(other);
  if (names) return names.join(", ");
  const bounds = [[above, "above"], [minimum, "from"], [below, "below"], [maximum, "to"]].filter(([bound]) => bound !== undefined);
  return [type, ...bounds.map(([bound, word]) => `${word} ${bound}`)].join(" ");
}

function parameters(listed) {
  const heads = ["Parameter", "Meaning", "Values", "Default"].map((text) => make("th", { scope: "col" }, text));
  const rows = listed.map(({ name, description = "", schema }) => make("tr", {},
    make("td", {}, code(name)), make("td", {}, description), make("td", {}, values(schema)),
    make("td", {}, "default" in schema ? code(schema.default) : "")));
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
}

function route(method, path, { description = "", requestBody, parameters: listed = [], responses, "x-example": example }) {
  return make("section", { class: "box" },
    make("h2", {}, code(`${method.toUpperCase()} ${path}`)), make("p", {}, description),
    requestBody ? make("p", {}, `Body: ${requestBody.description}`) : null,
    listed.length ? parameters(listed) : null,
    example ? make("pre", { tabindex: 0 }, code(example)) : null,
    make("ul", {}, ...Object.entries(responses).map(([status, { description: what }]) => make("li", {}, code(status), ` ${what}`))));
}

try {
  const { info, paths } = await (await fetch("openapi.json")).json();
  byId("title").textContent = `${info.title} ${info.version}`;
  byId("about").textContent = info.description;
  byId("routes").append(...Object.entries(paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, one]) => route(method, path, one))));
} catch {
  byId("about").textContent = "The description could not be loaded. Reload the page, or read openapi.json.";
}
