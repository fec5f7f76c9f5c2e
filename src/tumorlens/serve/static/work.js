// Runs a few jobs at a time, and lists those in progress.

import { Problem, batch, predict, served } from "./api.js";
import { byId, make } from "./dom.js";
import { failureOf, resultOf } from "./results.js";
import { count } from "./words.js";
import { entryOf } from "./zip.js";

const AT_ONCE = 2;
const waiting = [];
let running = 0;

/** Queue a job; `found` gets each of its results. */
export function enqueue(job, options, found) {
  const stop = new AbortController();
  const state = make("span", { class: "quiet" }, "waiting");
  const line = make("li", {}, make("span", { class: "name" }, job.name), state,
    make("button", { type: "button", "aria-label": `Cancel ${job.name}`, onclick: () => stop.abort() }, "Cancel"));
  byId("queue").append(line);
  waiting.push(async () => {
    const report = (text) => { state.textContent = text; };
    try {
      if (!stop.signal.aborted) await run(job, options, found, stop.signal, report);
    } catch (error) {
      if (error.name !== "AbortError") found(failed(job, error, options, found));
    } finally {
      line.remove();
    }
  });
  stop.signal.addEventListener("abort", () => line.remove());
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running++;
    waiting.shift()().finally(() => { running--; next(); });
  }
}

function failed(job, error, options, found) {
  const problem = error instanceof Problem ? error
    : new Problem({ title: "The page failed", detail: String(error), cure: "Reload the page and try again." });
  return failureOf(job.name, problem, options, () => enqueue(job, options, found));
}

async function run(job, options, found, signal, report) {
  const [file] = job.files;
  if (job.kind === "file") {
    report("working");
    const prediction = await predict(file, { ...options, heatmap: "png" }, signal);
    found(resultOf(job.name, prediction.rows, { options, model: prediction.model, blobOf: async () => file }));
    return;
  }
  report("sending");
  // Parts are numbered, so that file names stay on this page.
  const content = job.kind === "zip" ? file : new Map(job.files.map((one, i) => [`${i + 1}`, one]));
  const blobOf = job.kind === "zip" ? (row) => entryOf(file, row.path) : async (row) => content.get(row.path);
  const give = (name, rows) => found(resultOf(name, rows, { options, model: served, blobOf }));
  const series = new Map(); // kept until the end, when the row for the volume arrives
  let n = 0;
  try {
    for await (const row of batch(content, options, signal)) {
      report(`${count(++n)} predictions`);
      row.path = row.file;
      row.file = nameOf(row.path, job, content);
      if (row.series) series.set(row.series, [...(series.get(row.series) ?? []), row]);
      else give(row.file, [row]);
    }
    if (!n) {
      const detail = `${job.name} contains no file to classify.`;
      throw new Problem({ title: "Nothing to classify", detail, cure: "Add another one.", status: 422 });
    }
  } finally {
    // Also if the response was cut off: the predictions received are kept.
    if (!signal.aborted) for (const rows of series.values()) give(seriesName(rows, job), rows);
  }
}

function nameOf(path, job, content) {
  if (job.kind === "zip") return `${job.name}/${path.replace(/^\/+/, "")}`.replace(/\/$/, "");
  return content.get(path)?.name ?? job.name;
}

function seriesName(rows, job) {
  const slices = rows.filter((row) => row.kind !== "volume");
  if (job.kind === "several" && slices.length > 1) return `${slices[0].file} and ${slices.length - 1} more`;
  return (rows.find((row) => row.kind === "volume") ?? rows[0]).file;
}
