// The page of the service: connects the parts, the keyboard, and the requests.

import { blobFromDataUri } from "./anomaly_map.js";
import { announce, byId, digits, element, plural } from "./format.js";
import { scrollToItem, setFilter, setUpHistory, showHistory, showItem } from "./history.js";
import { setUpIntake } from "./intake.js";
import { open, thumbnail } from "./pictures.js";
import { makeQueue } from "./queue.js";
import * as service from "./service.js";
import { setUpStage, showFeedbackNote, showResult, showStage, toggleMap, toggleZoom } from "./stage.js";
import { setUpThreshold, showModelScores, showThreshold } from "./threshold.js";
import { counts, makeEntry, model, ofModel, shown, thresholdOf, unscored, verdict, visit } from "./visit.js";

// --- Requests, with a token where the service requires one.

let asked = null; // the dialog that is open, as a promise

function askForToken(wasRefused) {
  asked ??= new Promise((resolve, reject) => {
    const dialog = byId("token-dialog");
    byId("token-error").hidden = !wasRefused;
    byId("token").value = "";
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener("close", () => {
      asked = null;
      byId("open-token").hidden = false;
      if (dialog.returnValue === "given") resolve();
      else {
        stop("No token was given; enter one with the button “Token”");
        reject(new service.ServiceError("No token was given; enter one with the button “Token”", 0));
      }
    }, { once: true });
  });
  return asked;
}

async function authorized(send) {
  for (;;) {
    const used = service.token.get();
    try {
      return await send();
    } catch (error) {
      if (error.status !== 401) throw error;
      if (used === service.token.get()) await askForToken(used !== "");
    }
  }
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  service.token.set(byId("token").value.trim());
  byId("token-dialog").close("given");
});
byId("token-cancel").addEventListener("click", () => byId("token-dialog").close(""));
byId("open-token").addEventListener("click", () => askForToken(false).then(loadModels, () => {}));

// --- Models.

async function loadModels() {
  try {
    const answer = await authorized(service.models);
    const known = visit.models;
    visit.models = new Map(answer.models.map((each) => {
      const before = known.get(each.name);
      const moved = before && before.hash === each.hash && before.current !== before.threshold;
      return [each.name, { ...each, scores: each.out_of_fold_scores, current: moved ? before.current : each.threshold }];
    }));
    for (const [name, each] of known) if (!visit.models.has(name)) visit.models.set(name, each);
    visit.feedback = answer.feedback === true;
    byId("problem").hidden = true;
  } catch (error) {
    showProblem(error.message);
    return;
  }
  byId("model").replaceChildren(...[...visit.models.keys()].map((name) => element("option", "", name)));
  for (const part of document.querySelectorAll("[data-feedback]")) part.hidden = !visit.feedback;
  if (visit.feedback) byId("intake-note").textContent = "The pictures go only to this service. It keeps those that you mark.";
  selectModel(visit.models.has(visit.model) ? visit.model : visit.models.keys().next().value);
}

function selectModel(name) {
  visit.model = name;
  byId("model").value = name;
  const { method, image_size: [height, width], images } = model();
  byId("model-facts").textContent = `${method} · ${height} × ${width} px · ${plural(images, "good image")}`;
  byId("threshold-card").hidden = false;
  showModelScores();
  select(ofModel().includes(visit.selected) ? visit.selected : ofModel()[0] ?? null);
  showHistory();
  const left = unscored();
  byId("rescore").hidden = !left.length;
  byId("rescore").textContent = `Score ${plural(left.length, "picture")} with this model`;
}

function showProblem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = false;
}

byId("model").addEventListener("change", (event) => selectModel(event.target.value));
byId("rescore").addEventListener("click", () => {
  take(unscored());
  byId("rescore").hidden = true;
});

// --- Pictures.

function take(pictures, leftOut = 0) {
  byId("problem").hidden = true;
  if (leftOut) showProblem(`${plural(leftOut, "file")} left out: no ${leftOut === 1 ? "picture" : "pictures"}.`);
  if (!pictures.length || !visit.model) return;
  const entries = pictures.map(({ file, name }) => makeEntry(file, name, visit.model));
  visit.entries = visit.entries.concat(entries);
  if (visit.filter !== "all") setFilter("all");
  showHistory();
  select(entries[0]);
  queue.add(entries);
}

async function score(entry, signal) {
  try {
    entry.status = "sending";
    entry.time = new Date();
    refresh(entry);
    const bitmap = await open(entry.file);
    if (bitmap) entry.thumbnail ||= await thumbnail(bitmap);
    bitmap?.close();
    refresh(entry);
    const include = bitmap ? "map" : "map,input";
    const waiting = (isBusy) => { entry.status = isBusy ? "busy" : "sending"; refresh(entry); };
    const answer = await authorized(() => service.predict(entry.file, entry.model, include, { signal, waiting }));
    if (answer.input) {
      entry.preview = blobFromDataUri(answer.input);
      entry.thumbnail ||= await thumbnail(await createImageBitmap(entry.preview));
    }
    entry.map = blobFromDataUri(answer.map);
    const { score: value, threshold, hash, regions, width, height } = answer;
    Object.assign(entry, { score: value, threshold, hash, regions, width, height, status: "done", error: "" });
    if (hash !== visit.models.get(entry.model).hash) await loadModels(); // the model's file changed
  } catch (error) {
    entry.status = "failed";
    entry.error = error.name === "AbortError" ? "Stopped; not scored" : error.message;
  }
  refresh(entry);
}

// Show a change of one picture everywhere.
function refresh(entry) {
  if (entry.model !== visit.model) return;
  if (visit.filter === "all") showItem(entry);
  if (entry === visit.selected) {
    showStage();
    if (verdict(entry)) announceResult(entry);
  }
}

function announceResult(entry) {
  const word = verdict(entry);
  announce(word === "failed" ? `${entry.name}: ${entry.error}`
    : `${entry.name}: ${word}, score ${digits(entry.score, thresholdOf(entry))}, threshold ${digits(thresholdOf(entry))}`);
}

const queue = makeQueue(score, (done, total) => {
  const isBusy = done < total;
  byId("progress").hidden = !isBusy;
  byId("progress-bar").max = total;
  byId("progress-bar").value = done;
  byId("progress-text").textContent = `${done} of ${plural(total, "picture")}`;
  showHistory();
  if (model()) showThreshold();
  const { all, NG, failed } = counts();
  if (!isBusy && total > 1) announce(`${plural(all, "picture")}: ${NG} anomalous${failed ? `, ${failed} failed` : ""}`);
});

function stop(error) {
  for (const entry of queue.stop()) Object.assign(entry, { status: "failed", error, time: new Date() });
  byId("progress").hidden = true;
  showHistory();
  showStage();
}

byId("stop").addEventListener("click", () => stop("Stopped; not scored"));
byId("retry").addEventListener("click", () => {
  const failed = ofModel().filter((entry) => entry.status === "failed");
  for (const entry of failed) Object.assign(entry, { status: "waiting", error: "" });
  if (visit.filter === "failed") setFilter("all");
  queue.add(failed);
});

function select(entry) {
  const before = visit.selected;
  visit.selected = entry;
  if (before && before.model === visit.model) showItem(before);
  if (entry) {
    showItem(entry);
    scrollToItem(entry);
  }
  showStage();
  if (model()) showThreshold();
}

// Select a picture of those that the filter shows, by an offset from the present one or from an end.
function step(offset, from = shown().indexOf(visit.selected)) {
  const next = shown()[Math.min(Math.max(from + offset, 0), shown().length - 1)];
  if (!next || next === visit.selected) return;
  select(next);
  if (verdict(next)) announceResult(next);
}

// --- Feedback.

async function giveFeedback(label) {
  const entry = visit.selected;
  if (!visit.feedback || entry?.status !== "done") return;
  const isWithdrawn = entry.label === label;
  try {
    if (isWithdrawn) await authorized(() => service.withdrawFeedback(entry.model, entry.sha256));
    else {
      const answer = await authorized(() => service.sendFeedback(entry.file, entry.model, label, thresholdOf(entry), entry.hash));
      entry.sha256 = answer.sha256;
    }
    entry.label = isWithdrawn ? "" : label;
    refreshLabel(entry, isWithdrawn ? "Taken back: the service deleted the picture." : `Stored in the folder “${label}” of the service.`);
  } catch (error) {
    if (error.status === 409) await loadModels(); // the model's file changed
    refreshLabel(entry, `Not stored: ${error.message}`);
  }
}

function refreshLabel(entry, text) {
  showItem(entry);
  announce(text);
  if (entry !== visit.selected) return;
  showFeedbackNote(entry, text);
  showResult();
}

byId("mark-good").addEventListener("click", () => giveFeedback("good"));
byId("mark-defect").addEventListener("click", () => giveFeedback("defect"));

// --- Keyboard.

const LETTERS_KEY = "metalad-letter-keys";
const letters = byId("letter-keys");
try {
  letters.checked = localStorage.getItem(LETTERS_KEY) !== "off";
  letters.addEventListener("change", () => localStorage.setItem(LETTERS_KEY, letters.checked ? "on" : "off"));
} catch { /* the browser denies the page a storage: the choice is not kept */ }

const KEYS = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => step(0, 0), End: () => step(0, shown().length - 1),
};
const LETTERS = {
  g: () => giveFeedback("good"), d: () => giveFeedback("defect"), m: toggleMap, o: () => byId("show-outlines").click(),
  z: () => visit.selected?.width && toggleZoom(), a: () => setFilter(visit.filter === "all" ? "NG" : "all"),
  "?": () => byId("help").showModal(),
};
addEventListener("keydown", (event) => {
  const isTyped = event.target.closest?.("input:not([type=checkbox]), select, textarea");
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat && event.key.length === 1) return;
  if (isTyped || document.querySelector("dialog[open]")) return;
  const action = KEYS[event.key] ?? (letters.checked ? LETTERS[event.key.toLowerCase()] : undefined);
  if (!action || (KEYS[event.key] && !visit.selected)) return;
  event.preventDefault();
  action();
});
byId("open-help").addEventListener("click", () => byId("help").showModal());
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

setUpIntake(take);
setUpStage();
setUpHistory((entry) => { select(entry); if (verdict(entry)) announceResult(entry); });
setUpThreshold(() => { showThreshold(); showResult(); showHistory(); });
loadModels();
