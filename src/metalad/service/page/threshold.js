// The card of the threshold: the scores of good images and of this visit on a logarithmic axis, a slider, a number.

import { byId, digits, element, percent, perFrame, plural } from "./format.js";
import { counts, isEarlier, model, ofModel, verdict, visit } from "./visit.js";

const BINS = 40;
const MAX_RATIO = 4;
const MIN_RATIO = 1 / 8;
const SLIDER = 1000;
const CAUTIONS = { caution: "Caution", warning: "Warning", severe: "Severe warning" };

const slider = byId("threshold-slider"), number = byId("threshold-number"), plot = byId("plot");
let low = MIN_RATIO; // the axis begins here, in units of the model's threshold, and ends at MAX_RATIO

// The position of a score on the axis, from 0 to 1; scores beyond the ends are at the ends.
export function position(score, threshold = model().threshold) {
  const value = Math.log(Math.max(score / threshold, 1e-9) / low) / Math.log(MAX_RATIO / low);
  return Math.min(Math.max(value, 0), 1);
}

const thresholdAt = (value) => model().threshold * low * (MAX_RATIO / low) ** (value / SLIDER);

// changed() is called when the user moved the threshold.
export function setUpThreshold(changed) {
  const draw = perFrame(changed);
  const move = (value) => {
    model().current = value;
    showThreshold();
    draw();
  };
  slider.addEventListener("input", () => {
    const value = thresholdAt(Number(slider.value));
    number.value = Number(value.toPrecision(4));
    move(Number(number.value));
  });
  number.addEventListener("input", () => {
    const value = number.valueAsNumber;
    number.setAttribute("aria-invalid", !(value > 0));
    if (value > 0) move(value);
  });
  byId("reset-threshold").addEventListener("click", () => {
    move(model().threshold);
    number.value = digits(model().threshold);
    slider.focus();
  });
}

// Draw what depends on the model alone.
export function showModelScores() {
  const { scores, threshold, caution } = model();
  const lowest = scores.length ? Math.min(...scores) / threshold : 1;
  low = Math.min(Math.max(lowest * 0.9, MIN_RATIO), 1 / 2);
  const bins = new Array(BINS).fill(0);
  for (const score of scores) bins[Math.min(Math.floor(position(score) * BINS), BINS - 1)] += 1;
  const highest = Math.max(1, ...bins);
  byId("plot-bars").replaceChildren(...bins.map((count, index) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const height = count ? Math.max(3, 88 * count / highest) : 0;
    const values = { x: (index + 0.1) * 100 / BINS, width: 80 / BINS, y: 100 - height, height };
    for (const [name, value] of Object.entries(values)) bar.setAttribute(name, value);
    return bar;
  }));
  plot.style.setProperty("--model", `${100 * position(threshold)}%`);
  const ticks = [[1 / 4, "¼"], [1 / 2, "½"], [1, "1"], [2, "2"], [4, "4 ×"]].filter(([ratio]) => ratio >= low * 0.99);
  byId("plot-ticks").replaceChildren(...ticks.map(([ratio, text]) => {
    const tick = element("span", "", text);
    tick.style.left = `${100 * position(ratio * threshold)}%`;
    return tick;
  }));
  byId("caution").hidden = !caution;
  if (caution) byId("caution").replaceChildren(element("b", "", `${CAUTIONS[caution.severity] ?? "Caution"}: `), `${caution.text}.`);
  // Another version of the model resets the threshold, also in the control that has the focus.
  if (number.valueAsNumber !== model().current) number.value = digits(model().current);
  slider.value = Math.round(SLIDER * position(model().current));
  showThreshold();
}

// Draw what depends on the threshold and on the pictures.
export function showThreshold() {
  const { current, threshold, scores } = model();
  const rejected = scores.filter((score) => score > current).length;
  const calibration = scores.length
    ? `${rejected} of ${plural(scores.length, "good image")} would be rejected (${percent(rejected, scores.length)}).`
    : "This model has no scores of good images.";
  if (document.activeElement !== slider) slider.value = Math.round(SLIDER * position(current));
  slider.setAttribute("aria-valuetext", `${digits(current)}: ${calibration}`);
  plot.style.setProperty("--threshold", `${100 * position(current)}%`);
  byId("reset-threshold").hidden = current === threshold;
  byId("calibration-count").textContent = calibration;
  const { NG, OK } = counts();
  byId("visit-count").textContent = NG + OK ? `${NG} of ${plural(NG + OK, "picture")} of this visit ${NG === 1 ? "is" : "are"} NG.` : "";
  showVisit();
}

const showVisit = perFrame(() => {
  // Scores of an earlier version have another scale.
  const scored = ofModel().filter((entry) => entry.status === "done" && !isEarlier(entry));
  byId("plot-visit").replaceChildren(...scored.map((entry) => {
    const dot = element("i", `${verdict(entry) === "NG" ? "dot-ng" : "dot-ok"}${entry === visit.selected ? " selected" : ""}`);
    dot.style.left = `${100 * position(entry.score)}%`;
    return dot;
  }));
});
