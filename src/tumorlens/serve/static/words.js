// The text of a prediction.

const NAMES = { notumor: "No tumour", pituitary: "Pituitary tumour" };

/** A class name for display: `notumor` → "No tumour". */
export const className = (name) => NAMES[name] ?? name.charAt(0).toUpperCase() + name.slice(1);

/** A share as a percentage, never rounded to 100 % or 0 %. */
export function percent(share) {
  if (share > 0.999) return "> 99.9 %";
  if (share < 0.001 && share > 0) return "< 0.1 %";
  return `${(100 * share).toFixed(1)} %`;
}

export const count = (n) => n.toLocaleString("en-US");

/** `ok`, `uncertain`, `refused` or `error`; an unknown verdict counts as an error. */
export function stateOf(row) {
  if (row.verdict === "ok" || row.verdict === "uncertain") return row.verdict;
  return row.verdict.startsWith("refused") ? "refused" : "error";
}

/** The verdict on a row: a short `head`, and `text` with the reason. */
export function verdictWords(row, coverage) {
  const thing = row.kind === "volume" ? "volume" : row.kind === "slice" ? "slice" : "image";
  const state = stateOf(row);
  if (state === "ok") {
    const p = percent(row.probabilities[row.class]);
    const text = thing === "volume"
      ? `Predicted by the deciding slices, with a mean probability of ${p}.`
      : `Probability ${p}, calibrated. It is the only class in the ${share(coverage)} prediction set.`;
    return { state, head: className(row.class), text };
  }
  if (state === "uncertain") {
    const why = sentence(row.reason) || "The prediction is in doubt.";
    if (!row.class) return { state, head: "Uncertain", text: why };
    const p = percent(row.probabilities[row.class]);
    return { state, head: "Uncertain", text: `${why} Most probable is ${lower(row.class)} (${p}), which is not reliable.` };
  }
  if (state === "refused") {
    const why = row.reason ? ` Reason: ${row.reason}.` : "";
    const text = `This ${thing} differs from the brain MRI that the model was trained on, so no class is reported.${why}`;
    return { state, head: "Not classified", text };
  }
  const what = row.verdict.replace(/^error:\s*/, "");
  return { state, head: row.title ?? "Could not be read", text: sentence(what), cure: inSettings(row.reason) };
}

/** A cure that names a parameter of the API, for the page's settings. */
const inSettings = (cure) => cure.replace(/\?(plane|volume)=/g, "$1 ");

/** One line for lists and screen readers. */
export function brief(row) {
  const state = stateOf(row);
  if (state === "ok") return `${className(row.class)}, ${percent(row.probabilities[row.class])}`;
  if (state === "uncertain") return `Uncertain${row.reason ? `: ${row.reason}` : ""}`;
  return state === "refused" ? "Not classified" : row.title ?? `Could not be read: ${row.verdict.replace(/^error:\s*/, "")}`;
}

export const share = (coverage) => `${+(100 * coverage).toFixed(1)} %`;

export const lower = (name) => className(name).toLowerCase();

/** A phrase as a sentence: with a capital letter and a full stop. */
export function sentence(text) {
  if (!text) return "";
  const start = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(start) ? start : `${start}.`;
}
