// The main module of the page: from files to predictions.

import { model, onUnauthorized, sample } from "./api.js";
import { showCard, showNoCard } from "./card.js";
import { byId, mark } from "./dom.js";
import { csvOf, jsonOf, save } from "./download.js";
import { dropped, jobsOf, pasted } from "./intake.js";
import { chief, failureOf } from "./results.js";
import * as session from "./session.js";
import { show, showNothing } from "./viewer.js";
import { verdictWords } from "./words.js";
import { enqueue } from "./work.js";

let classes = [];

const announce = (text) => { byId("live").textContent = text; };

function open(result) {
  if (!classes.length) classes = Object.keys(result.rows.find((row) => row.probabilities)?.probabilities ?? {});
  show(result, classes, () => session.list(open));
  session.list(open, result);
}

function announcement(result) {
  const { head, text, cure = "" } = verdictWords(chief(result), result.options.coverage);
  return `${result.name}: ${head}. ${text} ${cure}`;
}

/** Shows the first result of the chosen files; the others stay in the list, so that nothing moves while reading. */
async function take(files) {
  if (!files.length) return;
  const options = { coverage: +byId("coverage").value, plane: byId("plane").value };
  if (byId("volume").value >= 1) options.volume = Math.floor(byId("volume").value);
  let first = true;
  const found = (result) => {
    session.add(result);
    if (first) {
      open(result);
      if (matchMedia("(max-width: 60rem)").matches) requestAnimationFrame(() => byId("result").scrollIntoView());
    } else session.list(open);
    first = false;
    announce(announcement(result));
  };
  announce(files.length === 1 ? `Classifying ${files[0].name}` : `Classifying ${files.length} files`);
  for (const job of await jobsOf(files)) enqueue(job, options, found);
}

async function trySample() {
  byId("sample").disabled = true;
  try {
    const blob = await sample();
    await take([new File([blob], "Generated sample", { type: blob.type })]);
  } catch (problem) {
    const failure = failureOf("Generated sample", problem, { coverage: 0.95, plane: "axial" }, trySample);
    session.add(failure);
    open(failure);
    announce(`The sample could not be loaded: ${problem.message}`);
  } finally {
    byId("sample").disabled = false;
  }
}

async function loadCard() {
  try {
    const card = await model();
    classes = card.classes;
    if (card.takes?.formats) byId("formats").textContent = `${card.takes.formats}, and zips of them`;
    showCard(card);
  } catch (problem) {
    showNoCard(problem, loadCard);
  }
}

/** A token from the user, or null; only api.js gets it. */
function ask(refused) {
  const dialog = byId("ask");
  byId("ask-why").textContent = refused
    ? "That token was not accepted. Check it, or ask the administrator."
    : "Ask the administrator of the service. The token is kept only in this page's memory, until you close the page.";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue || null);
      byId("token").value = dialog.returnValue = "";
    }, { once: true });
  });
}

function listen() {
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = ""; // the same file can be chosen again
  });
  byId("sample").addEventListener("click", trySample);
  document.addEventListener("paste", (event) => {
    const files = pasted(event.clipboardData);
    if (files.length) event.preventDefault();
    else if (!event.target.closest("input")) announce("The clipboard contains no image.");
    take(files);
  });
  byId("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("ask").close(byId("token").value.trim());
  });
  byId("ask-cancel").addEventListener("click", () => byId("ask").close(""));
  byId("csv").addEventListener("click", () => save(csvOf(session.all(), classes), "tumorlens.csv", "text/csv"));
  byId("json").addEventListener("click", () => save(jsonOf(session.all()), "tumorlens.json", "application/json"));
  byId("clear").addEventListener("click", () => {
    session.clear();
    session.list(open, null);
    showNothing();
    announce("The session is empty.");
    byId("history").focus();
  });
}

function listenToDrops() {
  let inside = 0; // enter and leave fire for every element passed
  const veil = (n) => { inside = n; byId("veil").hidden = n < 1; };
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => { if (hasFiles(event)) veil(inside + 1); });
  addEventListener("dragleave", (event) => { if (hasFiles(event)) veil(inside - 1); });
  addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    veil(0);
    try {
      take(await dropped(event.dataTransfer));
    } catch {
      announce("The folder could not be read. Choose its files instead.");
    }
  });
}

onUnauthorized(ask);
for (const place of document.querySelectorAll("[data-mark]")) place.replaceChildren(mark(place.dataset.mark));
listen();
listenToDrops();
loadCard();
