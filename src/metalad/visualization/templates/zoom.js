"use strict";
// A click on a picture in one of these rows shows all the row's pictures large; arrow keys go from row to row.
function zoomable(body) {
  const dialog = document.getElementById("zoom");
  let zoomed = null;

  function zoom(row) {
    zoomed = row;
    document.getElementById("zoom-title").textContent = row.dataset.title;
    const pictures = [...row.querySelectorAll("td.picture")].filter((cell) => cell.querySelector("img"));
    document.getElementById("zoom-pictures").replaceChildren(...pictures.map((cell) => {
      const figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      caption.textContent = cell.dataset.label;
      figure.append(caption, cell.querySelector("img").cloneNode());
      return figure;
    }));
    if (!dialog.open) dialog.showModal();
  }

  function step(by) {
    const seen = [...body.rows].filter((row) => !row.hidden && !row.classList.contains("later"));
    const next = seen[seen.indexOf(zoomed) + by];
    if (next) zoom(next);
  }

  body.addEventListener("click", (event) => {
    if (event.target.closest(".zoom")) zoom(event.target.closest("tr"));
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight" || event.key === "ArrowDown") { event.preventDefault(); step(1); }
    if (event.key === "ArrowLeft" || event.key === "ArrowUp") { event.preventDefault(); step(-1); }
  });
}
