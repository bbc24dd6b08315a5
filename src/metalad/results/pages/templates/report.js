(() => {
  const VISIBLE_ROWS = 12; // rows shown before a click on "Show all"
  const body = document.querySelector("#image-table tbody");
  const rows = [...body.rows];
  const wrongOnly = document.getElementById("wrong-only");
  const showAll = document.getElementById("show-all");
  const text = new Intl.Collator("en", { numeric: true });
  let expanded = rows.length <= VISIBLE_ROWS + 3;

  const compare = (key) => (a, b) =>
    key === "score" || key === "position" ? a.dataset[key] - b.dataset[key] : text.compare(a.dataset[key], b.dataset[key]);

  function updateVisibility() {
    let matching = 0;
    for (const row of body.rows) {
      row.hidden = wrongOnly.checked && !row.classList.contains("wrong");
      row.classList.toggle("folded", !row.hidden && ++matching > VISIBLE_ROWS && !expanded);
    }
    showAll.hidden = expanded || matching <= VISIBLE_ROWS;
    showAll.textContent = `Show all ${matching} images`;
    document.getElementById("none-wrong").hidden = matching > 0 || !wrongOnly.checked;
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
    updateVisibility();
  }

  for (const button of document.querySelectorAll("#image-table thead button"))
    button.addEventListener("click", () => sortBy(button));
  wrongOnly.addEventListener("change", updateVisibility);
  showAll.addEventListener("click", () => { expanded = true; updateVisibility(); });
  zoomable(body);
  updateVisibility();
})();
