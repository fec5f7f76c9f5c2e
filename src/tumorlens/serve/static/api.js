// The service's API: one function a request. Every failure is a Problem with words for people.

let token = ""; // in memory alone: never in storage, cookies or addresses
let asking = null;
let most = Infinity; // bytes of one request
export let served = ""; // name of the model
let askForToken = async () => null;

const TRIES = 4; // while the service says that it is busy
const LONGEST_WAIT = 30; // seconds between two of them

/** What went wrong, as RFC 9457 problem details tell it, with the cure. */
export class Problem extends Error {
  constructor({ title, detail = "", cure = "", status = 0, type = "" }) {
    super(detail || title);
    Object.assign(this, { title, detail, cure, status, type });
  }
}

/** `ask(refused)` gets a token from the user, or null; `refused` tells that the last one was wrong. */
export function onUnauthorized(ask) {
  askForToken = ask;
}

/** Classify one file; `options` are the query's: heatmap, class, slice, coverage, plane. */
export async function predict(blob, options, signal) {
  const said = Object.entries(options).filter(([, value]) => value !== null && value !== undefined);
  const query = new URLSearchParams(said);
  const answer = await send(`v1/predict?${query}`, await body(blob), signal);
  return answer.json();
}

/** Classify a zip, or files by the names they go by (a Map); yields rows as they come. */
export async function* batch(content, options, signal) {
  const query = new URLSearchParams(options);
  const isZip = content instanceof Blob;
  const init = isZip ? await body(content, "application/zip") : { method: "POST", body: form(content) };
  const answer = await send(`v1/batch?${query}`, init, signal);
  let rest = "";
  const lines = answer.body.pipeThrough(new TextDecoderStream());
  try {
    for (let reader = lines.getReader(), part; !(part = await reader.read()).done;) {
      const found = (rest + part.value).split("\n");
      rest = found.pop();
      for (const line of found) if (line) yield JSON.parse(line);
    }
    if (rest) yield JSON.parse(rest);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({
      title: "The answer was cut off", detail: "The service stopped in the middle of its answer.", cure: "Try again.",
    });
  }
}

/** The model's card, and what the service takes. */
export async function model() {
  const answer = await (await send("v1/model")).json();
  most = answer.takes?.bytes ?? Infinity;
  served = answer.model ?? "";
  return answer;
}

export const sample = async () => (await send("v1/sample")).blob();

function form(files) {
  const data = new FormData();
  check([...files.values()].reduce((sum, file) => sum + file.size, 0));
  for (const [name, file] of files) data.append("file", file, name);
  return data;
}

/** Said here, as a service that hangs up in the middle of a body cannot always be heard. */
function check(bytes) {
  if (bytes <= most) return;
  const [n, limit] = [bytes, most].map((v) => `${(v / 1e6).toFixed(1)} MB`);
  throw new Problem({
    title: "Over a limit",
    detail: `There are ${n}, and this service takes ${limit} at once.`,
    cure: "Add less at once, or ask whoever runs the service to raise its limit.",
    status: 413,
  });
}

async function body(blob, type = "application/octet-stream") {
  check(blob.size);
  try {
    await blob.slice(0, 1).arrayBuffer(); // fetch would not tell a file that is gone from a service that is
  } catch {
    throw new Problem({
      title: "The browser cannot read this file", detail: "It was moved, or may not be read.", cure: "Choose it again.",
    });
  }
  return { method: "POST", body: blob, headers: { "Content-Type": type } };
}

async function send(path, init = {}, signal = undefined) {
  for (let tried = 1; ; tried++) {
    const used = token;
    const headers = { ...init.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    let answer;
    try {
      answer = await fetch(path, { ...init, headers, signal, credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem({
        title: "The service does not answer",
        detail: "The connection failed, or was closed before the whole file was sent.",
        cure: "Check that tumorlens serve is running and that the file is within its limits; then try again.",
      });
    }
    if (answer.ok) return answer;
    if (answer.status === 401 && (token !== used || await newToken(used))) continue;
    const busy = answer.status === 503 || answer.status === 429;
    const problem = await problemOf(answer);
    // What took too long once would again, and all that work is lost each time.
    if (!busy || tried >= TRIES || problem.type.endsWith("took-too-long")) throw problem;
    await pause(Math.min(Number(answer.headers.get("Retry-After")) || 1, LONGEST_WAIT), signal);
  }
}

/** Requests that are refused together ask once. */
async function newToken(refused) {
  asking ??= askForToken(refused !== "").finally(() => { asking = null; });
  const given = await asking;
  if (given) token = given;
  return Boolean(given);
}

async function problemOf(answer) {
  const { status } = answer;
  const words = { title: `The service answered ${status}`, cure: "Try again, or ask whoever runs the service.", status };
  try {
    const told = await answer.json();
    for (const key of ["title", "detail", "cure", "type"]) if (typeof told[key] === "string") words[key] = told[key];
  } catch {
    // A proxy's page says nothing that a reader could use.
  }
  return new Problem(words);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => { clearTimeout(timer); reject(new DOMException("cancelled", "AbortError")); };
    const timer = setTimeout(() => { signal?.removeEventListener("abort", stop); resolve(); }, 1000 * seconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
