// The selected picture: input beside overlay, opacity, outlines, enlargement; its verdict, score and regions.

import { COLORS, decodeMap, drawHeat, regionsAbove, withPaths } from "./anomaly_map.js";
import { byId, digits, element, plural } from "./format.js";
import { draw, open } from "./pictures.js";
import { position } from "./threshold.js";
import { isEarlier, ofModel, shown, thresholdOf, verdict, visit } from "./visit.js";

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  OK: "m5 12.5 4.5 4.5L19 7.5", NG: "m6.5 6.5 11 11m0-11-11 11", failed: "M12 6v7.5m0 3.5v.5", "": "M7 12h.01M12 12h.01M17 12h.01",
};
const WORDS = { OK: "OK", NG: "NG", failed: "Failed", "": "Waiting" };
const panes = byId("panes"), outlines = byId("outlines");
let map = null, drawn = null, regions = [], selectedRegion = -1;

export function setUpStage() {
  byId("ramp").style.background = `linear-gradient(to right, ${COLORS.join(", ")})`;
  byId("opacity").addEventListener("input", showOpacity);
  byId("show-outlines").addEventListener("change", () => { outlines.style.display = byId("show-outlines").checked ? "" : "none"; });
  for (const pane of panes.querySelectorAll(".pane")) {
    pane.addEventListener("click", (event) => {
      const box = pane.firstChild.getBoundingClientRect();
      const isPointer = event.detail > 0;
      if (isPointer) toggleZoom((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
      else toggleZoom();
    });
  }
  byId("regions").addEventListener("click", (event) => {
    const row = event.target.closest("[data-region]");
    if (row) selectRegion(Number(row.dataset.region));
  });
}

function showOpacity() {
  const value = Number(byId("opacity").value);
  byId("heat-canvas").style.opacity = value / 100;
  byId("opacity-value").textContent = `${value} %`;
}

export function toggleMap() {
  byId("opacity").value = Number(byId("opacity").value) > 0 ? 0 : 100;
  showOpacity();
}

// Enlarge both panes around a point (from 0 to 1), by default the highest peak, or reduce them.
export function toggleZoom(x, y) {
  setZoom(!panes.classList.contains("enlarged"), x, y);
}

function setZoom(enlarged, x, y) {
  panes.classList.toggle("enlarged", enlarged);
  for (const pane of panes.querySelectorAll(".pane")) pane.setAttribute("aria-pressed", enlarged);
  if (!enlarged) return;
  const [left, top, width, height] = regions[0]?.box ?? [0, 0, visit.selected.width, visit.selected.height];
  const center = [x ?? (left + width / 2) / visit.selected.width, y ?? (top + height / 2) / visit.selected.height];
  panes.style.setProperty("--x", `${100 * center[0]}%`);
  panes.style.setProperty("--y", `${100 * center[1]}%`);
}

// Show the selected picture; everything that a change of the threshold changes is in showResult.
export async function showStage() {
  const entry = visit.selected;
  byId("stage").hidden = byId("verdict-card").hidden = !entry;
  if (!entry) { byId("regions-card").hidden = true; return; }
  byId("picture-name").textContent = entry.name;
  const list = shown(), index = list.indexOf(entry);
  byId("previous").disabled = index === 0;
  byId("next").disabled = index === list.length - 1;
  const place = ofModel().indexOf(entry) + 1;
  byId("picture-facts").textContent = [`${place} of ${ofModel().length}`, entry.width ? `${entry.width} × ${entry.height} px` : ""].filter(Boolean).join(" · ");
  const key = `${entry.id} ${entry.status}`;
  if (drawn === key) { showResult(); return; }
  if (drawn?.split(" ")[0] !== String(entry.id)) setZoom(false);
  drawn = key;
  map = null;
  showResult();
  const [bitmap, decoded] = await Promise.all([
    entry.preview ? createImageBitmap(entry.preview) : open(entry.file), entry.map ? decodeMap(entry.map) : null,
  ]);
  if (drawn !== key) { bitmap?.close(); return; } // another picture was selected meanwhile
  map = decoded;
  panes.classList.toggle("no-picture", !bitmap);
  if (bitmap) {
    panes.style.setProperty("--ratio", bitmap.width / bitmap.height);
    panes.classList.toggle("tall", bitmap.height > bitmap.width);
    for (const id of ["input-canvas", "base-canvas"]) draw(byId(id), bitmap);
    bitmap.close();
  }
  showResult();
}

// Show what depends on the threshold: colors, outlines, regions, verdict.
export function showResult() {
  const entry = visit.selected;
  if (!entry) return;
  showVerdict(entry);
  const isDone = entry.status === "done", isOwn = thresholdOf(entry) === entry.threshold;
  const ratio = isDone ? thresholdOf(entry) / entry.threshold : 1;
  selectedRegion = -1;
  regions = !isDone ? [] : isOwn ? withPaths(entry.regions) : map ? regionsAbove(map, { ...entry, ratio: Math.max(ratio, 1e-6) }) : [];
  byId("heat-canvas").hidden = outlines.toggleAttribute("hidden", !map);
  if (map) drawHeat(byId("heat-canvas"), map, Math.max(ratio, 1e-6));
  outlines.setAttribute("viewBox", `0 0 ${entry.width || 1} ${entry.height || 1}`);
  outlines.replaceChildren(...regions.map(({ path }) => {
    const line = document.createElementNS(SVG, "path");
    line.setAttribute("d", path);
    return line;
  }));
  showRegions(isDone, isOwn);
}

function showVerdict(entry) {
  const word = verdict(entry), card = byId("verdict-card"), limit = thresholdOf(entry);
  card.className = `card ${word ? word.toLowerCase() : "pending"}`;
  byId("verdict-icon").firstElementChild.setAttribute("d", ICONS[word]);
  byId("verdict-word").textContent = WORDS[word];
  byId("verdict-text").textContent = {
    OK: "The score does not exceed the threshold.", NG: "Anomalous: the score exceeds the threshold.", failed: entry.error,
    "": entry.status === "busy" ? "The service is busy; the picture is sent again." : "The picture is being scored.",
  }[word];
  if (isEarlier(entry)) byId("verdict-text").textContent += " Scored by an earlier version of the model, with its threshold.";
  const isDone = entry.status === "done";
  byId("score-part").hidden = !isDone;
  byId("feedback").hidden = !isDone || !visit.feedback;
  if (!isDone) return;
  const text = digits(entry.score, limit), times = digits(entry.score / limit, 1);
  byId("score").textContent = text;
  byId("score-times").textContent = limit > 0 ? `${times} × threshold` : "";
  byId("bar-threshold").textContent = `threshold ${digits(limit)}`;
  const bar = byId("score-bar");
  bar.setAttribute("aria-label", `Score ${text}, threshold ${digits(limit)}`);
  bar.style.setProperty("--threshold", `${100 * position(limit, entry.threshold)}%`);
  bar.style.setProperty("--score", `${100 * position(entry.score, entry.threshold)}%`);
  if (byId("feedback-note").dataset.entry !== String(entry.id)) showFeedbackNote(entry, letterKeys() ? "Keys: G for good, D for defect." : "");
  byId("mark-good").setAttribute("aria-pressed", entry.label === "good");
  byId("mark-defect").setAttribute("aria-pressed", entry.label === "defect");
}

// Show a text below the buttons until another picture is selected.
export function showFeedbackNote(entry, text) {
  byId("feedback-note").textContent = text;
  byId("feedback-note").dataset.entry = entry.id;
}

const letterKeys = () => byId("letter-keys").checked;

function showRegions(isDone, isOwn) {
  byId("regions-card").hidden = !isDone;
  byId("regions-count").textContent = regions.length ? plural(regions.length, "region") : "";
  byId("regions").replaceChildren(...regions.map(({ box, area, peak_score: peak }, index) => {
    const button = element(
      "button", "region", element("b", "", `${index + 1}`),
      element("span", "", element("small", "", "peak"), `${isOwn ? "" : "≈ "}${digits(peak)}`),
      element("span", "", element("small", "", "area"), `${area.toLocaleString("en")} px`),
      element("span", "", element("small", "", "at x, y"), `${Math.round(box[0] + box[2] / 2)}, ${Math.round(box[1] + box[3] / 2)}`),
    );
    button.type = "button";
    button.dataset.region = index;
    button.setAttribute("aria-pressed", false);
    return element("li", "", button);
  }));
  byId("regions-note").textContent = !regions.length ? "No pixel is above the threshold."
    : isOwn ? "" : "Computed by this page at the moved threshold.";
}

// Highlight a region and enlarge the panes there; a second click reduces them.
function selectRegion(index) {
  selectedRegion = selectedRegion === index ? -1 : index;
  byId("regions").querySelectorAll("button").forEach((button, number) => button.setAttribute("aria-pressed", number === selectedRegion));
  [...outlines.children].forEach((line, number) => line.classList.toggle("selected", number === selectedRegion));
  const { box: [left, top, width, height] } = regions[index], { selected } = visit;
  setZoom(selectedRegion >= 0, (left + width / 2) / selected.width, (top + height / 2) / selected.height);
}
