// The service's API: one function per endpoint. Every failure is a Problem with text for the user.

let token = ""; // only in memory: never in storage, cookies or URLs
let asking = null;
let maxBytes = Infinity; // of one request
export let served = ""; // name of the model
export let volumeRule = ""; // how a volume gets its class, in one sentence
let askForToken = async () => null;

const TRIES = 4; // while the service is busy
const LONGEST_WAIT = 30; // seconds between two tries

/** An error as RFC 9457 problem details, with the cure. */
export class Problem extends Error {
  constructor({ title, detail = "", cure = "", status = 0, type = "" }) {
    super(detail || title);
    Object.assign(this, { title, detail, cure, status, type });
  }
}

/** `ask(refused)` gets a token from the user, or null; `refused` is true if the last one was wrong. */
export function onUnauthorized(ask) {
  askForToken = ask;
}

/** Classify one file; `options` are the query: heatmap, class, slice, coverage, plane. */
export async function predict(blob, options, signal) {
  const given = Object.entries(options).filter(([, value]) => value !== null && value !== undefined);
  const query = new URLSearchParams(given);
  const response = await send(`v1/predict?${query}`, await body(blob), signal);
  return response.json();
}

/** Classify a zip, or files by name (a Map); yields rows as they arrive. */
export async function* batch(content, options, signal) {
  const query = new URLSearchParams(options);
  const isZip = content instanceof Blob;
  const init = isZip ? await body(content, "application/zip") : { method: "POST", body: form(content) };
  const response = await send(`v1/batch?${query}`, init, signal);
  let rest = "";
  const lines = response.body.pipeThrough(new TextDecoderStream());
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
      title: "The response was cut off", detail: "The service stopped in the middle of its response.", cure: "Try again.",
    });
  }
}

/** The model card, and the limits of the service. */
export async function model() {
  const card = await (await send("v1/model")).json();
  maxBytes = card.takes?.bytes ?? Infinity;
  served = card.model ?? "";
  volumeRule = card.volume_rule ?? "";
  return card;
}

export const sample = async () => (await send("v1/sample")).blob();

function form(files) {
  const data = new FormData();
  check([...files.values()].reduce((sum, file) => sum + file.size, 0));
  for (const [name, file] of files) data.append("file", file, name);
  return data;
}

/** Checked here, as the response of a service that stops reading a body does not always arrive. */
function check(bytes) {
  if (bytes <= maxBytes) return;
  const [n, limit] = [bytes, maxBytes].map((v) => `${(v / 1e6).toFixed(1)} MB`);
  throw new Problem({
    title: "Over a limit",
    detail: `The files have ${n}; this service accepts ${limit} at once.`,
    cure: "Add less at once, or ask the administrator to raise the limit.",
    status: 413,
  });
}

async function body(blob, type = "application/octet-stream") {
  check(blob.size);
  try {
    await blob.slice(0, 1).arrayBuffer(); // fetch fails alike for a missing file and a missing service
  } catch {
    throw new Problem({
      title: "The browser could not read this file", detail: "It was moved, or you lack permission to read it.", cure: "Choose it again.",
    });
  }
  return { method: "POST", body: blob, headers: { "Content-Type": type } };
}

async function send(path, init = {}, signal = undefined) {
  for (let tried = 1; ; tried++) {
    const used = token;
    const headers = { ...init.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    let response;
    try {
      response = await fetch(path, { ...init, headers, signal, credentials: "omit" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem({
        title: "The service does not respond",
        detail: "The connection failed, or was closed before the whole file was sent.",
        cure: "Check that tumorlens serve is running and that the file is within its limits; then try again.",
      });
    }
    if (response.ok) return response;
    if (response.status === 401 && (token !== used || await newToken(used))) continue;
    const busy = response.status === 503 || response.status === 429;
    const problem = await problemOf(response);
    // What took too long would do so again, and that work would be lost.
    if (!busy || tried >= TRIES || problem.type.endsWith("took-too-long")) throw problem;
    await pause(Math.min(Number(response.headers.get("Retry-After")) || 1, LONGEST_WAIT), signal);
  }
}

/** Concurrent requests that are refused ask for a token only once. */
async function newToken(refused) {
  asking ??= askForToken(refused !== "").finally(() => { asking = null; });
  const given = await asking;
  if (given) token = given;
  return Boolean(given);
}

async function problemOf(response) {
  const { status } = response;
  const problem = { title: `The service responded with ${status}`, cure: "Try again, or ask the administrator.", status };
  try {
    const details = await response.json();
    for (const key of ["title", "detail", "cure", "type"]) if (typeof details[key] === "string") problem[key] = details[key];
  } catch {
    // The error page of a proxy does not help the user.
  }
  return new Problem(problem);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => { clearTimeout(timer); reject(new DOMException("cancelled", "AbortError")); };
    const timer = setTimeout(() => { signal?.removeEventListener("abort", stop); resolve(); }, 1000 * seconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
