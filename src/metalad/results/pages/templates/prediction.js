(() => {
  const PAGE_SIZE = 50;
  const byId = (id) => document.getElementById(id);
  const { counts, rows: chunkSize, files, hasPictures } = JSON.parse(byId("page-data").textContent);
  const [rejected, passed, unreadable] = counts;
  const total = rejected + passed + unreadable;
  // The images are sorted, so each filter is a range of them.
  const ranges = {
    All: [0, total], Rejected: [0, rejected], Passed: [rejected, rejected + passed], Unreadable: [rejected + passed, total],
  };
  const body = document.querySelector("#image-table tbody");
  const search = byId("search"), filter = byId("filter"), pageInput = byId("page");
  const chunks = new Map(), waiting = new Map();
  let selected = null; // indices of the images that match a search; null without one
  let page = 0, run = 0;

  window.metaladRows = (number, rows) => waiting.get(number)(rows);

  function load(number) {
    if (!chunks.has(number)) {
      chunks.set(number, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        waiting.set(number, resolve);
        script.src = `${files}/${String(number).padStart(5, "0")}.js`;
        script.onerror = () => { chunks.delete(number); reject(new Error(script.src)); };
        script.onload = () => script.remove();
        document.head.append(script);
      }));
    }
    return chunks.get(number);
  }
  const rowAt = async (index) => (await load(Math.floor(index / chunkSize)))[index % chunkSize];

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children);
    return made;
  }

  function pictureCell(label, source, isLarge, name) {
    const cell = element("td", "picture");
    cell.dataset.label = label;
    cell.setAttribute("role", "cell");
    if (!source) {
      cell.append(element("span", "none", "–"));
      return cell;
    }
    const button = element("button", "zoom");
    button.type = "button";
    button.title = "Enlarge";
    button.dataset.source = source;
    const image = document.createElement("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.alt = `${label} of ${name}`;
    image.onerror = () => button.replaceChildren(element("span", "none", "not available"));
    if (isLarge) button.append(element("span", "none", "large: click to open"));
    else { image.src = source; button.append(image); }
    cell.append(button);
    return cell;
  }

  function tableRow(row) {
    const [path, score, scoreText, times, isRejected, regions, overlay, input, isLarge] = row;
    const split = Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\")) + 1;
    const made = element("tr"), name = element("td", "name", element("bdi", "file", path.slice(split)));
    made.setAttribute("role", "row");
    name.setAttribute("role", "cell");
    if (split) name.append(element("bdi", "folder", path.slice(0, split)));
    made.append(name);
    const decision = element("td", "decision");
    decision.setAttribute("role", "cell");
    if (row.length === 2) {
      made.dataset.title = `${path} · unreadable`;
      if (hasPictures) made.append(pictureCell("Anomaly map"), pictureCell("Input"));
      decision.append(element("span", "chip wrong", "unreadable"), element("small", "", row[1]));
    } else {
      made.dataset.title = `${path} · ${isRejected ? "rejected" : "passed"}, score ${scoreText}`;
      if (hasPictures) made.append(pictureCell("Anomaly map", overlay, isLarge, path), pictureCell("Input", input, isLarge, path));
      decision.append(
        element("span", `chip ${isRejected ? "wrong" : "right"}`, isRejected ? "rejected" : "passed"),
        element("span", "score-value", scoreText), element("small", "times", times),
        element("small", "regions", isRejected ? `${regions} ${regions === 1 ? "region" : "regions"}` : ""),
      );
    }
    made.append(decision);
    return made;
  }

  const count = () => selected ? selected.length : ranges[filter.value][1] - ranges[filter.value][0];
  const indexAt = (position) => selected ? selected[position] : ranges[filter.value][0] + position;

  async function show() {
    const own = ++run, pages = Math.max(1, Math.ceil(count() / PAGE_SIZE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const positions = Array.from({ length: Math.min(PAGE_SIZE, count() - page * PAGE_SIZE) }, (_, offset) => page * PAGE_SIZE + offset);
    try {
      const rows = await Promise.all(positions.map((position) => rowAt(indexAt(position))));
      if (own !== run) return; // the user went on
      body.replaceChildren(...rows.map(tableRow));
      byId("failed").hidden = true;
    } catch {
      byId("failed").hidden = false;
    }
    pageInput.value = page + 1;
    pageInput.max = pages;
    byId("pages").textContent = pages;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
    byId("matching").textContent = `${count()} of ${total} images`;
    byId("none-matching").hidden = count() > 0;
  }

  async function select() {
    const own = ++run, query = search.value.trim().toLowerCase(), [start, end] = ranges[filter.value];
    const found = [];
    for (let number = Math.floor(start / chunkSize); query && number * chunkSize < end; number += 1) {
      let rows;
      try { rows = await load(number); } catch { byId("failed").hidden = false; return; }
      if (own !== run) return;
      byId("matching").textContent = `searching, ${Math.round(100 * number * chunkSize / total)} %`;
      rows.forEach((row, offset) => {
        const index = number * chunkSize + offset;
        if (index >= start && index < end && row[0].toLowerCase().includes(query)) found.push(index);
      });
    }
    selected = query ? found : null;
    page = 0;
    await show();
  }

  async function download() {
    const lines = [["path", "score", "times threshold", "decision", "regions", "error"]];
    for (let position = 0; position < count(); position += 1) {
      const row = await rowAt(indexAt(position));
      const [path, score, , times, isRejected, regions] = row;
      lines.push(row.length === 2 ? [path, "", "", "unreadable", "", row[1]]
        : [path, score, times.replace(" × threshold", ""), isRejected ? "rejected" : "passed", regions, ""]);
    }
    saveCsv("images.csv", lines);
  }

  let timer = 0;
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(select, 200); });
  filter.addEventListener("change", select);
  pageInput.addEventListener("change", () => { page = Number(pageInput.value) - 1; turn(); });
  byId("previous").addEventListener("click", () => { page -= 1; turn(); });
  byId("next").addEventListener("click", () => { page += 1; turn(); });
  byId("csv").addEventListener("click", () => download().catch(() => { byId("failed").hidden = false; }));
  async function turn() {
    await show();
    byId("images").scrollIntoView();
  }

  const viewer = makeViewer({
    items: () => [...body.rows].filter((row) => row.querySelector(".zoom")),
    pictures: (row) => [...row.querySelectorAll(".zoom")].map((button) => ({
      label: button.closest("td").dataset.label, src: button.dataset.source,
    })),
    title: (row) => row.dataset.title,
    peak: () => null,
  });
  body.addEventListener("click", (event) => {
    const cell = event.target.closest(".zoom")?.closest("td");
    if (cell) viewer.open(cell.closest("tr"), cell.dataset.label);
  });

  for (const element_ of document.querySelectorAll("[data-script]")) element_.hidden = false;
  show();
})();
