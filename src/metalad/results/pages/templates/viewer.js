"use strict";
// A dialog that shows one picture at a time: fitted to the window, or at full size, centered on the peak of the map.
// Left and right change the image, up and down (or 1 to 9) the picture, Enter, space or a click the size.
// items(): the images in their present order. pictures(item): [{label, src, full}]. title(item): text.
// peak(item): [x, y] in [0, 1], or null.
function makeViewer({ items, pictures, title, peak }) {
  const dialog = document.getElementById("viewer");
  const stage = document.getElementById("viewer-stage");
  const image = document.getElementById("viewer-image");
  const tabs = document.getElementById("viewer-tabs");
  const sizeButton = document.getElementById("viewer-size");
  let item = null, label = "", large = false, center = [0.5, 0.5], origin = null;

  function show(next, wanted) {
    item = next;
    const available = pictures(item);
    const chosen = available.find((picture) => picture.label === wanted) ?? available[0];
    if (!chosen) return;
    label = chosen.label;
    center = peak(item) ?? [0.5, 0.5];
    document.getElementById("viewer-title").textContent = title(item);
    tabs.replaceChildren(...available.map((picture) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = picture.label;
      button.setAttribute("aria-pressed", picture === chosen);
      button.addEventListener("click", () => show(item, picture.label));
      return button;
    }));
    image.alt = `${label} of ${title(item)}`;
    image.onerror = chosen.full ? () => { image.onerror = null; image.src = chosen.src; } : null; // the file was not copied along
    image.src = chosen.full || chosen.src;
    if (!dialog.open) { large = false; dialog.showModal(); stage.focus(); }
    layOut();
  }

  function layOut() {
    const { naturalWidth: width, naturalHeight: height } = image;
    stage.classList.toggle("large", large);
    sizeButton.setAttribute("aria-pressed", large);
    if (!width) return;
    const fit = Math.min(stage.clientWidth / width, stage.clientHeight / height);
    const scale = large ? Math.max(1 / (window.devicePixelRatio || 1), 2 * fit) : fit;
    image.style.width = `${width * scale}px`;
    image.style.height = `${height * scale}px`;
    stage.scrollLeft = center[0] * width * scale - stage.clientWidth / 2;
    stage.scrollTop = center[1] * height * scale - stage.clientHeight / 2;
  }

  function toggle() { large = !large; layOut(); }

  function step(offset) {
    const all = items();
    const next = all[all.indexOf(item) + offset];
    if (next) show(next, label);
  }

  function stepPicture(offset) {
    const labels = pictures(item).map((picture) => picture.label);
    const next = labels[labels.indexOf(label) + offset];
    if (next) show(item, next);
  }

  image.addEventListener("load", layOut);
  window.addEventListener("resize", () => { if (dialog.open) layOut(); });
  sizeButton.addEventListener("click", toggle);
  document.getElementById("viewer-previous").addEventListener("click", () => step(-1));
  document.getElementById("viewer-next").addEventListener("click", () => step(1));
  stage.addEventListener("pointerdown", (event) => {
    origin = { x: event.clientX, y: event.clientY, left: stage.scrollLeft, top: stage.scrollTop, id: event.pointerId };
  });
  stage.addEventListener("pointermove", (event) => { // a finger scrolls by itself
    if (!origin || !large || event.pointerType !== "mouse") return;
    stage.scrollLeft = origin.left - (event.clientX - origin.x);
    stage.scrollTop = origin.top - (event.clientY - origin.y);
  });
  stage.addEventListener("pointerup", () => setTimeout(() => { origin = null; }));
  stage.addEventListener("pointercancel", () => { origin = null; });
  stage.addEventListener("click", (event) => {
    const moved = origin ? Math.hypot(event.clientX - origin.x, event.clientY - origin.y) : 0;
    if (moved > 5) return;
    const box = image.getBoundingClientRect();
    if (event.detail) center = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    toggle();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
    const onStage = document.activeElement === stage;
    const actions = {
      ArrowRight: () => step(1), ArrowLeft: () => step(-1),
      ArrowDown: () => stepPicture(1), ArrowUp: () => stepPicture(-1),
      "+": () => { large = true; layOut(); }, "-": () => { large = false; layOut(); },
      ...(onStage && { Enter: toggle, " ": toggle }),
    };
    const number = /^[1-9]$/.test(event.key) ? pictures(item)[event.key - 1] : null;
    const action = number ? () => show(item, number.label) : actions[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  return { open: show };
}
