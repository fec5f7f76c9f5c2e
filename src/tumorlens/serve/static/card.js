// The model card: measured accuracy, intended use and limits.

import { byId, draw, make } from "./dom.js";
import { count, sentence } from "./words.js";

/** Subsets of the test images in display order; twin-free beside all, as images with twins inflate the accuracy. */
const SUBSETS = [
  ["test", "Test images", "Images not used for training."],
  ["twin_free", "Without twins", "Test images without a near-duplicate (twin) among the training images."],
  ["below_0.95", "Least similar", "Test images whose nearest training image has a similarity below 0.95."],
  ["other_patients", "Other patients", "Test images of patients who have no image in training or validation."],
  ["cross_validation", "Cross-validation", "Held-out images of all folds, each classified by a model that was trained on other images."],
];

/** Description of the test images, by their source. */
const TESTED = {
  folder: ["Official test images", "The test folder of the data set."],
  fold: ["Test fold", "One fold of all images, which shares no group of near-duplicates with the training images."],
  "split off": ["Test images", "Drawn at random from the images of one folder."],
  file: ["Test images", "Chosen by the split file used in training."],
};

/** Fill the card from GET /v1/model. */
export function showCard(card) {
  const measured = card.measured ?? {};
  byId("card-body").replaceChildren(...[
    card.dataset?.sheet === "phantom"
      ? caution("Trained on generated slices.", "It shows that the software works; its figures do not apply to patients.")
      : null,
    figures(measured, card.split?.test_source, card.measured_precision),
    card.int8 ? quantized(card.int8) : null,
    make("div", { class: "columns" }, uses(card), about(card)),
  ].filter(Boolean));
}

/** Show why there is no card. */
export function showNoCard(problem, again) {
  byId("card-body").replaceChildren(make("p", {}, [problem.title, problem.detail].filter(Boolean).map(sentence).join(" ")),
    make("p", {}, problem.cure), make("button", { type: "button", onclick: again }, "Try again"));
}

const caution = (head, text) => make("p", { class: "caution" }, make("strong", {}, `${head} `), text);

function figures(measured, source, precision) {
  const twins = measured.test && measured.twin_free ? measured.test.n - measured.twin_free.n : 0;
  const rows = SUBSETS.filter(([subset]) => measured[subset]).map(([subset, ...words]) => {
    const [name, description] = (subset === "test" && TESTED[source]) || words;
    const inflated = subset === "test" && twins > 0;
    const text = inflated
      ? `${description} ${count(twins)} of them have a near-duplicate among the training images.` : description;
    const { accuracy, accuracy_interval: interval, n, frozen_lists: lists } = measured[subset];
    const fixed = lists ? ` Fixed by the lists ${lists}.` : "";
    return make("tr", {}, make("th", { scope: "row" }, name, make("small", {}, text + fixed)),
      make("td", { class: "n big" }, one(accuracy)), make("td", { class: "n" }, `${one(interval[0])} to ${one(interval[1])}`),
      make("td", { class: "n" }, count(n)), make("td", { class: "plot" }, plot(accuracy, interval)));
  });
  if (!rows.length) {
    return caution("The accuracy is not known.", "This model was exported before it was evaluated.");
  }
  const heads = ["Measured on", "Accuracy", "95 % interval", "Images"];
  const table = make("table", { class: "measured" },
    make("caption", {}, `Share of images classified correctly, with 95 % interval${
      precision === "bf16" ? ", computed in bf16: this file may differ in a few predictions" : ""}`),
    make("thead", {}, make("tr", {},
      ...heads.map((text, i) => make("th", { scope: "col", class: i ? "n" : null }, text)),
      make("th", { scope: "col", class: "plot" }, make("span", { class: "hidden-text" }, "Chart")))),
    make("tbody", {}, ...rows));
  const missing = measured.twin_free ? null
    : caution("The accuracy without twins is missing.", "The other one is inflated if test images resemble training images.");
  return make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Measured accuracy" }, table, missing);
}

/** The accuracy was measured before the weights were rounded to 8 bits. */
function quantized({ n, accuracy_fp32: before, accuracy_int8: after }) {
  return make("p", { class: "quiet" }, `Measured before the weights were rounded to int8. On ${count(n)} validation images `
    + `the accuracy is ${two(after)}, and was ${two(before)} before.`);
}

const two = (share) => `${(100 * share).toFixed(2)} %`;
const one = (share) => `${(100 * share).toFixed(1)} %`;

/** Accuracy with its interval on a scale from 80 to 100 %, or from 0 if it is lower. */
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
    make("h3", {}, "Intended use"), make("p", {}, sentence(card.intended_use ?? "Research and teaching. Not for diagnosis.")),
    make("h3", {}, "Limits"), make("ul", { class: "plain" }, ...(card.limits ?? []).map((text) => make("li", {}, sentence(text)))));
}

function about(card) {
  const [data, weights, input] = [card.dataset ?? {}, card.weights_origin ?? {}, card.preprocessing];
  const facts = [
    ["Network", card.architecture], ["Configuration", card.configuration],
    ["Trained on", data.name && `${data.name}${data.n_images ? `, ${count(data.n_images)} images` : ""}`],
    ["Licence of the data", data.licence], ["Fingerprint of the data", data.fingerprint], ["Split", card.split?.source],
    ["Initial weights", weights.note ?? weights.name],
    ["Input", input && `${input.size?.join(" × ")} pixels, ${input.input}, ${input.resize}`],
    ["Precision", card.precision], ["Weights (SHA-256)", card.checkpoint_sha256],
    ["Exported by", card.tumorlens && `tumorlens ${card.tumorlens}`],
  ].filter(([, value]) => value);
  return make("div", {}, make("h3", {}, "About the model"), make("dl", { class: "about" },
    ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, `${value}`)])));
}
