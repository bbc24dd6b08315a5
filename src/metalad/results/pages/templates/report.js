(() => {
  const VISIBLE_ROWS = 12; // rows shown before a click on "Show all"
  const byId = (id) => document.getElementById(id);
  const body = document.querySelector("#image-table tbody");
  const rows = [...body.rows];
  const plot = byId("score-plot");
  const { low, high, logarithmic, own, rates, ownRate } = JSON.parse(byId("score-data").textContent);
  const model = own ?? Infinity; // JSON has no infinity
  const slider = byId("threshold");
  const text = new Intl.Collator("en", { numeric: true });
  const images = rows.map((row) => ({ row, score: parseFloat(row.dataset.score), label: row.dataset.label === "1" }));
  let expanded = rows.length <= VISIBLE_ROWS + 3;
  let threshold = model;

  // Numbers

  function digits(value, count = 4) {
    if (!Number.isFinite(value)) return String(value).replace("Infinity", "∞");
    const size = Math.abs(value);
    return size === 0 || (size >= 1e-4 && size < 10 ** count) ? value.toPrecision(count) : value.toExponential(count - 1);
  }
  function digitsApart(value) {
    let count = 4;
    while (count < 17 && value !== threshold && digits(value, count) === digits(threshold, count)) count += 1;
    return digits(value, count);
  }
  function timesThreshold(score) {
    const ratio = score / threshold;
    if (!(threshold > 0) || !Number.isFinite(ratio)) return "";
    let decimals = 2;
    while (decimals < 17 && ratio !== 1 && Number(ratio.toFixed(decimals)) === 1) decimals += 1;
    return `${ratio.toFixed(decimals)} × threshold`;
  }
  function showPart(id, part, whole) {
    const share = document.createElement("small");
    share.textContent = whole ? ` ${Number((100 * part / whole).toPrecision(3))} %` : "";
    byId(id).replaceChildren(`${part} of ${whole}`, share);
  }

  // Threshold

  const scoreAt = (position) => logarithmic ? low * (high / low) ** position : low + position * (high - low);
  function positionOf(score) {
    const position = logarithmic ? Math.log(score / low) / Math.log(high / low) : (score - low) / (high - low);
    return Math.min(Math.max(position, 0), 1);
  }
  const above = (value) => images.reduce((count, image) => count + (image.score > value), 0);

  // The shortest number that decides all images as `value` does: it is printed, and can be given as an option.
  function rounded(value) {
    for (let count = 4; count <= 17; count += 1) {
      const short = Number(value.toPrecision(count));
      if (above(short) === above(value)) return short;
    }
    return value;
  }

  // The rate for which good training images give this threshold; interpolated, logarithmic in both.
  function matchingRate(value) {
    if (value === model && ownRate !== null) return { text: `${100 * ownRate} %`.replace(/(\.\d{4})\d+/, "$1"), option: String(ownRate) };
    if (!rates.length || !(value > 0)) return null;
    const [smallest, highest] = rates[0], [largest, lowest] = rates[rates.length - 1];
    if (value > highest) return { text: `less than ${Number((100 * smallest).toPrecision(2))} %`, option: null };
    if (value < lowest) return { text: `more than ${Number((100 * largest).toPrecision(2))} %`, option: null };
    const next = rates.findIndex(([, limit]) => limit <= value);
    const [rate, limit] = rates[next], [before, limitBefore] = rates[Math.max(next - 1, 0)];
    const part = limitBefore > limit && limit > 0 ? Math.log(value / limit) / Math.log(limitBefore / limit) : 0;
    const found = Number((rate * (before / rate) ** part).toPrecision(2));
    return { text: `about ${Number((100 * found).toPrecision(2))} %`, option: String(found) };
  }

  function showThreshold() {
    const position = positionOf(threshold), share = `${100 * position}%`;
    slider.value = Math.round(position * slider.max);
    plot.style.setProperty("--threshold", share);
    const rejected = above(threshold), good = images.filter((image) => !image.label).length;
    const alarms = images.filter((image) => !image.label && image.score > threshold).length;
    const found = rejected - alarms, defective = images.length - good;
    const shown = threshold === model ? digits(threshold) : String(threshold);
    byId("threshold-label").textContent = `threshold ${shown}`;
    slider.setAttribute("aria-valuetext", `threshold ${shown}: ${defective - found} missed, ${alarms} false alarms`);
    byId("count-passed").textContent = images.length - rejected;
    byId("count-rejected").textContent = rejected;
    showPart("count-alarms", alarms, good);
    showPart("count-missed", defective - found, defective);
    const rate = matchingRate(threshold);
    byId("rate").textContent = rate ? rate.text : "unknown";
    const options = [
      ...(Number.isFinite(threshold) ? [`--threshold ${threshold === model ? rounded(threshold) : threshold}`] : []),
      ...(rate?.option ? [`--false-alarms ${rate.option}`] : []),
    ];
    byId("options").replaceChildren(...options.flatMap((option, index) => {
      const code = document.createElement("code");
      code.textContent = option;
      return index ? [" or ", code] : [code];
    }));
    byId("reset").hidden = threshold === model;
  }

  function showDecisions() {
    for (const { row, score, label } of images) {
      const rejected = score > threshold, right = rejected === label;
      const outcome = right ? "correct" : rejected ? "false alarm" : "missed defect";
      row.classList.toggle("wrong", !right);
      row.dataset.outcome = outcome;
      row.dataset.title = `${row.dataset.path} · ${rejected ? "rejected" : "passed"}, ${outcome}`;
      const chip = row.querySelector(".chip");
      chip.textContent = rejected ? "rejected" : "passed";
      chip.className = `chip ${right ? "right" : "wrong"}`;
      row.querySelector(".outcome").textContent = outcome;
      row.querySelector(".score-value").textContent = digitsApart(score);
      row.querySelector(".times").textContent = timesThreshold(score);
    }
    updateVisibility();
  }

  slider.addEventListener("input", () => { threshold = rounded(scoreAt(slider.value / slider.max)); showThreshold(); });
  slider.addEventListener("change", showDecisions);
  byId("reset").addEventListener("click", () => { threshold = model; showThreshold(); showDecisions(); slider.focus(); });

  // Image table

  const search = byId("search"), outcomeFilter = byId("outcome-filter"), defectFilter = byId("defect-filter");
  const showAll = byId("show-all");
  const matches = (row) => {
    const { outcome, path, defect } = row.dataset, wanted = outcomeFilter.value;
    return (wanted === "" || wanted === outcome || (wanted === "wrong" && outcome !== "correct"))
      && (defectFilter.value === "" || defectFilter.value === defect)
      && path.toLowerCase().includes(search.value.trim().toLowerCase());
  };

  function updateVisibility() {
    let matching = 0;
    for (const row of body.rows) {
      row.hidden = !matches(row);
      row.classList.toggle("folded", !row.hidden && ++matching > VISIBLE_ROWS && !expanded);
    }
    showAll.hidden = expanded || matching <= VISIBLE_ROWS;
    showAll.textContent = `Show all ${matching} images`;
    byId("matching").textContent = `${matching} of ${rows.length} images`;
    byId("none-matching").hidden = matching > 0;
    for (const option of outcomeFilter.options) {
      const count = images.filter(({ row }) => option.value === "" || option.value === row.dataset.outcome
        || (option.value === "wrong" && row.dataset.outcome !== "correct")).length;
      option.textContent = `${option.dataset.text} (${count})`;
    }
  }

  const compare = (key) => (a, b) =>
    key === "score" || key === "position" ? a.dataset[key] - b.dataset[key] : text.compare(a.dataset[key], b.dataset[key]);

  function sortBy(button) {
    const before = button.getAttribute("data-sorted");
    const direction = !before ? button.dataset.first ?? "ascending" : before === "ascending" ? "descending" : "ascending";
    for (const other of document.querySelectorAll("#image-table thead button")) other.removeAttribute("data-sorted");
    for (const header of document.querySelectorAll("#image-table thead th")) header.removeAttribute("aria-sort");
    button.setAttribute("data-sorted", direction);
    button.closest("th").setAttribute("aria-sort", direction);
    rows.sort(compare(button.dataset.key));
    if (direction === "descending") rows.reverse();
    body.append(...rows);
    updateVisibility();
  }

  function download() {
    const shown = [...body.rows].filter((row) => !row.hidden);
    const lines = shown.map(({ dataset }) => [
      dataset.path, dataset.defect, dataset.score, threshold, parseFloat(dataset.score) > threshold ? "rejected" : "passed", dataset.outcome,
    ]);
    saveCsv("images.csv", [["path", "defect", "score", "threshold", "decision", "outcome"], ...lines]);
  }

  for (const button of document.querySelectorAll("#image-table thead button"))
    button.addEventListener("click", () => sortBy(button));
  for (const control of [search, outcomeFilter, defectFilter]) control.addEventListener("input", updateVisibility);
  showAll.addEventListener("click", () => { expanded = true; updateVisibility(); });
  byId("csv").addEventListener("click", download);

  const viewer = makeViewer({
    items: () => [...body.rows].filter((row) => !row.hidden && !row.classList.contains("folded")),
    pictures: (row) => [...row.querySelectorAll("td.picture img")].map((image) => ({
      label: image.closest("td").dataset.label, src: image.src, full: image.dataset.full,
    })),
    title: (row) => row.dataset.title,
    peak: (row) => row.dataset.peak ? row.dataset.peak.split(" ").map(Number) : null,
  });
  body.addEventListener("click", (event) => {
    const cell = event.target.closest(".zoom")?.closest("td");
    if (cell) viewer.open(cell.closest("tr"), cell.dataset.label);
  });

  for (const element of document.querySelectorAll("[data-script]")) element.hidden = false;
  showThreshold();
  updateVisibility();
  // The browser has scrolled to the section of the address before rows were hidden.
  document.getElementById(location.hash.slice(1))?.scrollIntoView({ behavior: "instant" });
})();
