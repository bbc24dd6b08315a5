// The pictures of this visit, the models, and the thresholds: the state that all parts of the page show.

// models: by name, as the service describes them, and `current`, the threshold that the user chose.
// entries: pictures in the order in which they came. feedback: whether the service stores pictures.
export const visit = { models: new Map(), model: "", entries: [], selected: null, filter: "all", feedback: false };

let numbers = 0;

// status: waiting, sending, busy (the service requested a pause), done or failed.
// hash, threshold: of the model that scored the picture; the service can load another version under the same name.
export function makeEntry(file, name, model) {
  numbers += 1;
  return {
    id: numbers, file, name, model, status: "waiting", error: "", score: null, threshold: null, hash: null, regions: [],
    width: 0, height: 0, map: null, preview: null, thumbnail: "", label: "", sha256: "", time: null,
  };
}

export const model = () => visit.models.get(visit.model);

// Whether an earlier version of the model scored the picture.
export const isEarlier = (entry) => entry.status === "done" && entry.hash !== visit.models.get(entry.model).hash;

// The threshold that the user chose; for a score of an earlier version, the threshold of that version.
export const thresholdOf = (entry) => isEarlier(entry) ? entry.threshold : visit.models.get(entry.model).current;

// OK, NG, failed, or an empty text where there is no result yet.
export function verdict(entry) {
  if (entry.status === "failed") return "failed";
  if (entry.status !== "done") return "";
  return entry.score > thresholdOf(entry) ? "NG" : "OK";
}

// The pictures that were scored with the selected model, or are about to be.
export const ofModel = () => visit.entries.filter((entry) => entry.model === visit.model);

// The pictures that the selected model can still score: those of its earlier versions, or else those of other models.
export function unscored() {
  const entries = ofModel(), present = new Set(entries.filter((entry) => !isEarlier(entry)).map((entry) => entry.file));
  const candidates = entries.length ? entries.filter(isEarlier) : visit.entries;
  // Pictures that were scored several times, once.
  return [...new Map(candidates.map((entry) => [entry.file, entry])).values()].filter((entry) => !present.has(entry.file));
}

// Those that the filter shows.
export const shown = () => ofModel().filter((entry) => visit.filter === "all" || verdict(entry) === visit.filter);

export function counts() {
  const result = { all: 0, OK: 0, NG: 0, failed: 0, "": 0 };
  for (const entry of ofModel()) {
    result.all += 1;
    result[verdict(entry)] += 1;
  }
  return result;
}
