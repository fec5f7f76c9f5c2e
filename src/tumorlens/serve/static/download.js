// The session's rows as CSV or JSON, with the columns that `tumorlens predict` writes.

import { make } from "./dom.js";

const COLUMNS = ["kind", "file", "series", "slice", "instance", "class", "set", "verdict", "reason", "score", "coverage", "plane", "model"];
const FORMULA = /^[=+\-@\t\r]/; // a spreadsheet would run it

/** One object per row, without pictures. */
export function recordsOf(results) {
  return results.flatMap((result) => [...result.rows, ...result.notes, ...result.wholes].map((row) => ({
    kind: row.kind, file: row.file ?? result.name, series: row.series ?? null, slice: row.slice,
    instance: row.instance ?? null, class: row.class, set: row.set, verdict: row.verdict, reason: row.reason,
    score: row.score, coverage: result.options.coverage, plane: result.options.plane, model: result.model,
    probabilities: row.probabilities,
  })));
}

export function csvOf(results, classes) {
  const lines = recordsOf(results).map((record) => [
    ...COLUMNS.map((name) => (name === "set" ? record.set.join("|") : record[name])),
    ...classes.map((name) => record.probabilities?.[name]),
  ]);
  return [[...COLUMNS, ...classes.map((name) => `p_${name}`)], ...lines].map((line) => `${line.map(cell).join()}\n`).join("");
}

export function jsonOf(results) {
  return `${JSON.stringify({ notice: "For research, not for diagnosis.", rows: recordsOf(results) }, null, 1)}\n`;
}

/** Let the browser save a text. */
export function save(text, name, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function cell(value) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" && FORMULA.test(value) ? `'${value}` : `${value}`;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
