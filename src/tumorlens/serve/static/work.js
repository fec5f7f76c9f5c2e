// Jobs, a few at a time, with a line for each that is under way.

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
    const tell = (text) => { state.textContent = text; };
    try {
      if (!stop.signal.aborted) await run(job, options, found, stop.signal, tell);
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
    : new Problem({ title: "The page failed", detail: String(error), cure: "Reload it and try again." });
  return failureOf(job.name, problem, options, () => enqueue(job, options, found));
}

async function run(job, options, found, signal, tell) {
  const [file] = job.files;
  if (job.kind === "file") {
    tell("working");
    const answer = await predict(file, { ...options, heatmap: "png" }, signal);
    found(resultOf(job.name, answer.rows, { options, model: answer.model, blobOf: async () => file }));
    return;
  }
  tell("sending");
  // Parts go by numbers: what files are called stays here.
  const content = job.kind === "zip" ? file : new Map(job.files.map((one, i) => [`${i + 1}`, one]));
  const blobOf = job.kind === "zip" ? (row) => entryOf(file, row.path) : async (row) => content.get(row.path);
  const give = (name, rows) => found(resultOf(name, rows, { options, model: served, blobOf }));
  const series = new Map(); // held until the end, where the row for the whole stands
  let n = 0;
  try {
    for await (const row of batch(content, options, signal)) {
      tell(`${count(++n)} answers`);
      row.path = row.file;
      row.file = nameOf(row.path, job, content);
      if (row.series) series.set(row.series, [...(series.get(row.series) ?? []), row]);
      else give(row.file, [row]);
    }
    if (!n) {
      const detail = `${job.name} holds no file to classify.`;
      throw new Problem({ title: "There is nothing in it", detail, cure: "Add another one.", status: 422 });
    }
  } finally {
    // Also where the answer was cut off: what came is kept.
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
