"use strict";
// A click on a picture in a row of `body` opens a dialog with all pictures of that row, enlarged.
// The arrow keys change to the previous or the next visible row.
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

  function step(offset) {
    const visible = [...body.rows].filter((row) => !row.hidden && !row.classList.contains("folded"));
    const next = visible[visible.indexOf(zoomed) + offset];
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
