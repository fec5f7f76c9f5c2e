// The model's card: what it was measured to do, meant for, and cannot do.

import { byId, draw, make } from "./dom.js";
import { count, sentence } from "./words.js";

/** Parts of the data in the order in which they are told; twin-free beside all, as those with twins flatter. */
const PARTS = [
  ["test", "Test part", "Images that nothing was learned from."],
  ["twin_free", "Without twins", "Test images that have no near-duplicate among those learned from."],
  ["below_0.95", "Farther still", "Test images whose nearest image learned from has a similarity under 0.95."],
];

/** What the test part is, by where it came from. */
const TESTED = {
  folder: ["Official test part", "The test folder of the data set."],
  fold: ["Test fold", "One part of all images, which shares no group of near-duplicates with those learned from."],
  "split off": ["Test part", "Drawn at random from the images of one folder."],
  file: ["Test part", "As the split file of whoever trained it says."],
};

/** Fill the card from GET /v1/model. */
export function showCard(card) {
  const measured = card.measured ?? {};
  byId("card-body").replaceChildren(...[
    card.dataset?.sheet === "phantom"
      ? caution("Learned from generated slices.", "It shows that the software works; its figures say nothing about patients.")
      : null,
    figures(measured, card.split?.test_source, card.measured_precision),
    card.int8 ? quantised(card.int8) : null,
    make("div", { class: "columns" }, uses(card), about(card)),
  ].filter(Boolean));
}

/** Say why there is no card. */
export function showNoCard(problem, again) {
  byId("card-body").replaceChildren(make("p", {}, [problem.title, problem.detail].filter(Boolean).map(sentence).join(" ")),
    make("p", {}, problem.cure), make("button", { type: "button", onclick: again }, "Try again"));
}

const caution = (head, text) => make("p", { class: "caution" }, make("strong", {}, `${head} `), text);

function figures(measured, source, precision) {
  const twins = measured.test && measured.twin_free ? measured.test.n - measured.twin_free.n : 0;
  const rows = PARTS.filter(([part]) => measured[part]).map(([part, ...words]) => {
    const [name, told] = (part === "test" && TESTED[source]) || words;
    const flattered = part === "test" && twins > 0;
    const text = flattered ? `${told} ${count(twins)} of them have a near-duplicate among the images learned from.` : told;
    const { accuracy, accuracy_interval: interval, n } = measured[part];
    return make("tr", {}, make("th", { scope: "row" }, name, make("small", {}, text)),
      make("td", { class: "n big" }, one(accuracy)), make("td", { class: "n" }, `${one(interval[0])} to ${one(interval[1])}`),
      make("td", { class: "n" }, count(n)), make("td", { class: "plot" }, plot(accuracy, interval)));
  });
  if (!rows.length) {
    return caution("No accuracy is known.", "This model was exported before it was evaluated: nothing says how often it is right.");
  }
  const heads = ["Measured on", "Accuracy", "95 % interval", "Images"];
  const table = make("table", { class: "measured" },
    make("caption", {}, `Share of images classified right, with its 95 % interval${
      precision === "bf16" ? ", computed in bf16: this file may differ in a few answers" : ""}`),
    make("thead", {}, make("tr", {},
      ...heads.map((text, i) => make("th", { scope: "col", class: i ? "n" : null }, text)),
      make("th", { scope: "col", class: "plot" }, make("span", { class: "hidden-text" }, "Drawn")))),
    make("tbody", {}, ...rows));
  const missing = measured.twin_free ? null
    : caution("The figure without twins is missing.", "The other flatters wherever test images resemble those learned from.");
  return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Measured accuracy" }, table, missing);
}

/** The figures are those of the weights before they were rounded to 8 bits. */
function quantised({ n, accuracy_fp32: before, accuracy_int8: after }) {
  return make("p", { class: "quiet" }, `Measured before the weights were rounded to int8. On ${count(n)} validation images `
    + `this file is right on ${two(after)}, and was on ${two(before)} before.`);
}

const two = (share) => `${(100 * share).toFixed(2)} %`;
const one = (share) => `${(100 * share).toFixed(1)} %`;

/** Accuracy with its interval on a scale from 80 to 100 %, or from 0 where it is lower. */
function plot(accuracy, [low, high]) {
  const from = low < 0.8 ? 0 : 0.8;
  const x = (share) => 4 + 192 * ((share - from) / (1 - from));
  return draw("svg", { viewBox: "0 0 200 30", "aria-hidden": "true" },
    draw("line", { class: "grid", x1: 4, x2: 196, y1: 10, y2: 10 }),
    draw("line", { class: "whisker", x1: x(low), x2: x(high), y1: 10, y2: 10 }),
    draw("circle", { class: "dot", cx: x(accuracy), cy: 10, r: 5 }),
    draw("text", { x: 4, y: 28 }, `${100 * from} %`), draw("text", { x: 196, y: 28, "text-anchor": "end" }, "100 %"));
}

function uses(card) {
  return make("div", {},
    make("h3", {}, "Meant for"), make("p", {}, sentence(card.intended_use ?? "Research and teaching. Not for diagnosis.")),
    make("h3", {}, "Limits"), make("ul", { class: "plain" }, ...(card.limits ?? []).map((text) => make("li", {}, sentence(text)))));
}

function about(card) {
  const [data, weights, input] = [card.dataset ?? {}, card.weights_origin ?? {}, card.preprocessing];
  const facts = [
    ["Network", card.architecture], ["Configuration", card.configuration],
    ["Learned from", data.name && `${data.name}${data.n_images ? `, ${count(data.n_images)} images` : ""}`],
    ["Data’s licence", data.licence], ["Data’s fingerprint", data.fingerprint], ["Split", card.split?.source],
    ["Started from", weights.note ?? weights.name],
    ["Input", input && `${input.size?.join(" × ")} pixels, ${input.input}, ${input.resize}`],
    ["Precision", card.precision], ["Weights (SHA-256)", card.checkpoint_sha256],
    ["Made with", card.tumorlens && `tumorlens ${card.tumorlens}`],
  ].filter(([, value]) => value);
  return make("div", {}, make("h3", {}, "What it is"), make("dl", { class: "about" },
    ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, `${value}`)])));
}
