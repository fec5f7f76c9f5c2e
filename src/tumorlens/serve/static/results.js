// The prediction for one file, volume or series, and its pictures, which are fetched when shown.

import { predict } from "./api.js";
import { stateOf } from "./words.js";

const LASTING = /^4(?!01|08|29)/; // errors that trying again does not change
let made = 0;

/**
 * A result: `rows` of its slices in order (one for a plain image), `wholes` for its volumes, `notes`, `options` under
 * which it was made, `blobOf(row)` → the content behind a row, or null.
 */
export function resultOf(name, rows, { options, model = "", blobOf = async () => null, again = null }) {
  const wholes = rows.filter((row) => row.kind === "volume"); // a DICOM series may hold several
  const rest = rows.filter((row) => row.kind !== "volume");
  // What is to be said of the file as a whole, such as that it holds further volumes.
  const notes = rest.filter((row) => row.slice === null && stateOf(row) === "error" && rest.length > 1);
  const slices = notes.length < rest.length ? rest.filter((row) => !notes.includes(row)) : rest;
  if (slices.every((row) => Number.isInteger(row.slice))) slices.sort((a, b) => a.slice - b.slice);
  const result = { id: ++made, name, rows: slices, wholes, notes: rest === slices ? [] : notes, options, model, at: new Date(), blobOf, again, pictures: new Map() };
  for (const row of slices) if (row.image) keep(result, row, row.class, row);
  return result;
}

/** A request that failed as a whole. */
export function failureOf(name, problem, options, again) {
  const text = problem.detail.replace(/^The body\b/, "The file") || problem.title;
  const row = {
    title: problem.title, kind: "image", slice: null, class: null, probabilities: null, set: [],
    verdict: `error: ${text}`, reason: problem.cure, score: null,
  };
  return resultOf(name, [row], { options, again: LASTING.test(problem.status) ? null : again });
}

/** The row that represents a result in lists. */
export const chief = (result) => result.wholes[0] ?? result.rows[0];

/** The slice to show first: the most probable one of the volume's class, else the middle. */
export function firstSlice(result) {
  const called = result.wholes[0]?.class;
  const p = (row) => (called && row.class === called && row.verdict === "ok" ? row.probabilities[called] : 0);
  const best = result.rows.reduce((a, b) => (p(b) > p(a) ? b : a));
  return p(best) ? result.rows.indexOf(best) : Math.floor((result.rows.length - 1) / 2);
}

/** {image, heatmap} of a slice as data URLs, the heatmap for class `name` or null; null without a picture. */
export async function pictureOf(result, row, name, signal) {
  const known = knownPicture(result, row, name);
  if (known || stateOf(row) === "error") return known;
  const blob = await result.blobOf(row);
  if (!blob) return null;
  const several = result.rows.filter((other) => placeOf(other) === placeOf(row)).length > 1;
  // One file of a series holds one of its volumes.
  const [slice, volume] = several ? [row.slice, result.options.volume] : [null, null];
  const query = { ...result.options, heatmap: "png", class: name, slice, volume };
  const prediction = await predict(blob, query, signal);
  const found = prediction.rows.find((other) => other.image && (!several || other.slice === row.slice));
  return found ? keep(result, row, name, found) : null;
}

function keep(result, row, name, { image, heatmap = null }) {
  const picture = { image, heatmap };
  result.pictures.set(key(row, name), picture);
  return picture;
}

/** Identifies the file of a row; `file` is for display, and several files may share a name. */
const placeOf = (row) => row.path ?? row.file ?? "";

const key = (row, name) => JSON.stringify([placeOf(row), row.slice, name ?? ""]);

/** The same if already fetched, else null. */
export const knownPicture = (result, row, name) => result.pictures.get(key(row, name)) ?? null;

/** Any fetched picture, for a list. */
export function thumbnail(result) {
  return result.pictures.values().next().value?.image ?? null;
}
