// The history of this visit: thumbnails with verdicts, a filter, and the CSV file.

import { saveCsv } from "./csv.js";
import { byId, digits, element, plural } from "./format.js";
import { counts, isEarlier, ofModel, shown, thresholdOf, verdict, visit } from "./visit.js";

const STATES = { waiting: "waiting", sending: "scoring", busy: "service is busy" };
const items = new Map(); // by the number of the entry: the element of the list
const states = new Map(); // by the number of the entry: what its element shows

// select(entry) shows a picture.
export function setUpHistory(select) {
  byId("history").addEventListener("click", (event) => {
    const item = event.target.closest("[data-id]");
    if (item) select(visit.entries.find((entry) => entry.id === Number(item.dataset.id)));
  });
  byId("filter").addEventListener("change", (event) => setFilter(event.target.value));
  byId("csv").addEventListener("click", saveHistory);
}

export function setFilter(filter) {
  visit.filter = filter;
  byId("filter").value = filter;
  showHistory();
}

function itemOf(entry) {
  if (!items.has(entry.id)) {
    const button = element("button", "item", element("span", "thumbnail"), element("span", "item-name"), element("span", "item-line"));
    button.type = "button";
    button.dataset.id = entry.id;
    const place = element("li", "", button);
    items.set(entry.id, place);
  }
  return items.get(entry.id);
}

// Update one picture of the list.
export function showItem(entry) {
  const button = itemOf(entry).firstChild, [picture, name, line] = button.children, word = verdict(entry);
  const text = word === "OK" || word === "NG" ? digits(entry.score, thresholdOf(entry)) : entry.error || STATES[entry.status];
  const earlier = isEarlier(entry);
  const state = [word, text, earlier, entry.label, entry.thumbnail, entry === visit.selected].join();
  if (states.get(entry.id) === state) return;
  states.set(entry.id, state);
  button.className = `item ${word ? word.toLowerCase() : "pending"}`;
  button.toggleAttribute("aria-current", entry === visit.selected);
  if (entry === visit.selected) button.setAttribute("aria-current", "true");
  if (entry.thumbnail && !picture.firstChild) {
    const image = element("img");
    image.src = entry.thumbnail;
    image.alt = "";
    picture.append(image);
  }
  name.textContent = entry.name.split("/").slice(-2).join("/");
  button.title = entry.name;
  line.replaceChildren(...(word === "failed" ? [element("span", "item-error", text)]
    : word ? [element("span", `chip ${word.toLowerCase()}`, word), element("span", "item-score", text)]
      : [element("span", "quiet", text)]));
  if (earlier) line.append(element("span", "item-label", "earlier version of the model"));
  if (entry.label) line.append(element("span", "item-label", entry.label === "good" ? "marked good" : "marked defect"));
}

// Update the list, and how many pictures there are of each kind.
export function showHistory() {
  const entries = shown(), all = ofModel(), number = counts(), list = byId("history");
  for (const entry of entries) showItem(entry);
  const wanted = entries.map(itemOf);
  if (wanted.length !== list.children.length || wanted.some((place, index) => list.children[index] !== place)) list.replaceChildren(...wanted);
  byId("history-card").hidden = visit.entries.length === 0;
  byId("history-empty").hidden = entries.length > 0;
  byId("history-empty").textContent = all.length ? "No picture matches." : "No picture was scored with this model yet.";
  byId("history-count").textContent = entries.length === all.length ? plural(all.length, "picture") : `${entries.length} of ${plural(all.length, "picture")}`;
  for (const option of byId("filter").options) option.textContent = `${{ all: "All", NG: "Anomalous", OK: "OK", failed: "Failed" }[option.value]} (${number[option.value]})`;
  byId("retry").hidden = number.failed === 0;
  byId("csv").disabled = number.OK + number.NG + number.failed === 0;
}

// Scroll the list, but never the page: the picture must stay in view.
export function scrollToItem(entry) {
  const list = byId("history"), item = items.get(entry.id);
  if (!item?.isConnected) return;
  const [inner, outer] = [item.getBoundingClientRect(), list.getBoundingClientRect()];
  if (inner.top < outer.top) list.scrollTop -= outer.top - inner.top + 6;
  if (inner.bottom > outer.bottom) list.scrollTop += inner.bottom - outer.bottom + 6;
}

function saveHistory() {
  const rows = shown().filter((entry) => verdict(entry)).map((entry) => {
    const result = entry.status === "done";
    return [
      entry.name, entry.model, result ? entry.score : "", result ? thresholdOf(entry) : "", result ? verdict(entry) : "",
      result ? entry.regions.length : "", entry.label, entry.time.toISOString(), entry.error,
    ];
  });
  const heads = ["file", "model", "score", "threshold", "verdict", "regions at the model's threshold", "feedback", "time", "error"];
  saveCsv("metalad-visit.csv", [heads, ...rows]);
}
