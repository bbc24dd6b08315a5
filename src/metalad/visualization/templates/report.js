(() => {
  const FOLDED = 12; // rows shown before "Show all"
  const body = document.querySelector("#image-table tbody");
  const rows = [...body.rows];
  const wrongOnly = document.getElementById("wrong-only");
  const showAll = document.getElementById("show-all");
  const text = new Intl.Collator("en", { numeric: true });
  let unfolded = rows.length <= FOLDED + 3;

  const compare = (key) => (a, b) =>
    key === "score" || key === "place" ? a.dataset[key] - b.dataset[key] : text.compare(a.dataset[key], b.dataset[key]);

  function fold() {
    let shown = 0;
    for (const row of body.rows) {
      row.hidden = wrongOnly.checked && !row.classList.contains("wrong");
      row.classList.toggle("later", !row.hidden && ++shown > FOLDED && !unfolded);
    }
    showAll.hidden = unfolded || shown <= FOLDED;
    showAll.textContent = `Show all ${shown} images`;
    document.getElementById("none-wrong").hidden = shown > 0 || !wrongOnly.checked;
  }

  function sortBy(button) {
    const header = button.closest("th");
    const before = header.getAttribute("aria-sort");
    const first = button.dataset.first ?? "ascending";
    const direction = !before ? first : before === "ascending" ? "descending" : "ascending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    rows.sort(compare(button.dataset.key));
    if (direction === "descending") rows.reverse();
    body.append(...rows);
    fold();
  }

  for (const button of document.querySelectorAll("#image-table thead button"))
    button.addEventListener("click", () => sortBy(button));
  wrongOnly.addEventListener("change", fold);
  showAll.addEventListener("click", () => { unfolded = true; fold(); });
  zoomable(body);
  fold();
})();
