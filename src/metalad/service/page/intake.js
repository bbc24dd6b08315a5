// The ways by which pictures enter the page: drop, file choosers, and the camera.

import { byId, element } from "./format.js";

const SUFFIXES = /\.(jpe?g|jpe|jfif|png|bmp|tiff?|webp|gif|jp2|j2k|jpx|avif|heic|heif|jxl|ppm|pgm|pbm|pnm)$/i;
const isPicture = (file) => file.type.startsWith("image/") || SUFFIXES.test(file.name);

// Names with their folders, in the order that a person expects: 2 before 10.
const order = new Intl.Collator("en", { numeric: true });

// take(pictures, leftOut): pictures is a list of { file, name }; leftOut is the number of files that are no pictures.
export function setUpIntake(take) {
  const give = (items) => {
    const pictures = items.filter(({ file }) => isPicture(file)).sort((a, b) => order.compare(a.name, b.name));
    take(pictures, items.length - pictures.length);
  };
  for (const [button, input] of [["choose-files", "files"], ["choose-folder", "folder"]]) {
    byId(button).addEventListener("click", () => byId(input).click());
  }
  for (const id of ["files", "folder", "phone-camera"]) {
    byId(id).addEventListener("change", (event) => {
      give([...event.target.files].map((file) => ({ file, name: file.webkitRelativePath || file.name })));
      event.target.value = ""; // the same file can be chosen again
    });
  }
  setUpDrop(give);
  setUpCamera((file) => take([{ file, name: file.name }], 0));
}

function setUpDrop(give) {
  const veil = byId("drop-veil");
  let depth = 0;
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => { if (hasFiles(event)) { depth += 1; veil.hidden = false; } });
  addEventListener("dragleave", (event) => { if (hasFiles(event)) { depth -= 1; veil.hidden = depth > 0 ? false : true; } });
  addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    veil.hidden = true;
    // The entries must be read before the first await: then the list of items becomes empty.
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
    const files = [...event.dataTransfer.files].map((file) => ({ file, name: file.name }));
    give(entries.some((entry) => entry?.isDirectory) ? await filesBelow(entries) : files);
  });
}

async function filesBelow(entries) {
  const found = [];
  for (const entry of entries.filter(Boolean)) {
    if (entry.isDirectory) found.push(...await filesBelow(await children(entry)));
    else found.push({ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), name: entry.fullPath.slice(1) });
  }
  return found;
}

async function children(folder) {
  const reader = folder.createReader(), found = [];
  for (;;) { // a reader returns at most 100 entries at a time
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    found.push(...some);
  }
}

function setUpCamera(take) {
  const dialog = byId("camera-dialog"), video = byId("camera-video"), choice = byId("camera-choice");
  let number = 0;
  const stop = () => {
    for (const track of video.srcObject?.getTracks() ?? []) track.stop();
    video.srcObject = null;
  };
  const start = async (deviceId) => {
    stop();
    byId("camera-error").hidden = true;
    byId("take-picture").disabled = true;
    const camera = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: "environment" };
    try {
      const stream = await navigator.mediaDevices.getUserMedia({
        video: { ...camera, width: { ideal: 1920 }, height: { ideal: 1080 } },
      });
      if (!dialog.open) { for (const track of stream.getTracks()) track.stop(); return; }
      video.srcObject = stream;
      await listCameras(choice, stream.getVideoTracks()[0].getSettings().deviceId);
    } catch (error) {
      byId("camera-error").textContent = cameraError(error);
      byId("camera-error").hidden = false;
    }
  };
  byId("open-camera").addEventListener("click", () => {
    // Without https, browsers give a page no camera; a phone's own camera program can still be used.
    if (!navigator.mediaDevices?.getUserMedia) { byId("phone-camera").click(); return; }
    dialog.showModal();
    start();
  });
  video.addEventListener("loadeddata", () => { byId("take-picture").disabled = false; });
  choice.addEventListener("change", () => start(choice.value));
  dialog.addEventListener("close", stop);
  byId("take-picture").addEventListener("click", () => {
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    if (!canvas.width) return;
    canvas.getContext("2d").drawImage(video, 0, 0);
    number += 1;
    const name = `camera-${String(number).padStart(3, "0")}.png`;
    canvas.toBlob((blob) => take(new File([blob], name, { type: "image/png" })), "image/png");
  });
}

async function listCameras(choice, current) {
  const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
  choice.replaceChildren(...cameras.map(({ deviceId, label }, index) => {
    const option = element("option", "", label || `Camera ${index + 1}`);
    option.value = deviceId;
    option.selected = deviceId === current;
    return option;
  }));
  choice.hidden = cameras.length < 2;
}

function cameraError(error) {
  if (error.name === "NotAllowedError") return "The browser does not allow this page to use the camera; allow it in the settings of the browser.";
  if (error.name === "NotFoundError" || error.name === "OverconstrainedError") return "No camera was found; connect one, or choose pictures.";
  if (error.name === "NotReadableError") return "The camera is in use by another program; close it, and try again.";
  return `The camera cannot be used: ${error.message || error.name}`;
}
