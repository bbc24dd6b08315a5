// The anomaly map in the browser: its values, its colors relative to any threshold, and the regions above a threshold.
//
// The service sends a gray picture: value 104 is the model's threshold, 24 steps are a factor of 2, and each value is
// rounded up, so that exactly the pixels above the model's threshold are above 104. A large map is reduced by an
// integer factor, with the maximum of each block.

const ZERO = 104;
const STEPS = 24;
const OCTAVES = Math.log2(3);
const STRENGTH = 0.72;
const MAX_REGIONS = 100, MIN_FRACTION = 1e-4;

// matplotlib's inferno at equal steps.
export const COLORS = [
  "#000004", "#0b0724", "#210c4a", "#3d0965", "#57106e", "#71196e", "#8a226a", "#a32c61", "#bc3754", "#d04545", "#e35933",
  "#f1711f", "#f98c0a", "#fcaa0f", "#f9c932", "#f2e865", "#fcffa4",
];
const CHANNELS = COLORS.map((color) => [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16)));

function colorAt(position) {
  const scaled = position * (COLORS.length - 1), index = Math.min(Math.floor(scaled), COLORS.length - 2);
  return CHANNELS[index].map((low, channel) => low + (CHANNELS[index + 1][channel] - low) * (scaled - index));
}

export function blobFromDataUri(uri) {
  const [head, text] = uri.split(",");
  const type = head.slice("data:".length).split(";")[0];
  return new Blob([Uint8Array.from(atob(text), (character) => character.charCodeAt(0))], { type });
}

// Read the gray picture: { width, height, values }.
export async function decodeMap(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const { width, height } = bitmap;
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const values = new Uint8Array(width * height);
  for (let index = 0; index < values.length; index += 1) values[index] = data[4 * index];
  return { width, height, values };
}

// Draw the colored map; its opacity is a smoothstep function of the value, and 0 below a third of the threshold.
// ratio: the threshold divided by the model's.
export function drawHeat(canvas, map, ratio) {
  const table = new Uint32Array(256), bytes = new Uint8ClampedArray(table.buffer);
  for (let value = 0; value < 256; value += 1) {
    const octaves = (value - ZERO) / STEPS - Math.log2(ratio);
    const strength = Math.min(Math.max((octaves + OCTAVES) / (2 * OCTAVES), 0), 1);
    bytes.set([...colorAt(strength), 255 * STRENGTH * strength ** 2 * (3 - 2 * strength)], 4 * value);
  }
  canvas.width = map.width;
  canvas.height = map.height;
  const image = new ImageData(map.width, map.height), pixels = new Uint32Array(image.data.buffer);
  for (let index = 0; index < pixels.length; index += 1) pixels[index] = table[map.values[index]];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// Regions of the service at the model's threshold, with their outlines as paths of an SVG.
export const withPaths = (regions) => regions.map((region) => ({
  ...region, path: `M${region.polygon.map((vertex) => vertex.join(" ")).join("L")}Z`,
}));

// Regions above another threshold, the highest peak first; pixels are connected by their sides. As in the service, a
// region with fewer than MIN_FRACTION of the pixels is left out, unless it has the highest peak.
// width, height: of the image. threshold: the model's. ratio: the threshold divided by it.
export function regionsAbove(map, { width, height, threshold, ratio }) {
  const level = ZERO + STEPS * Math.log2(ratio), labels = new Int32Array(map.values.length), found = [];
  const scale = [width / map.width, height / map.height];
  for (let start = 0; start < labels.length; start += 1) {
    if (map.values[start] > level && !labels[start]) found.push(fill(map, level, labels, start, found.length + 1));
  }
  found.sort((first, second) => second.peak - first.peak || second.count - first.count);
  const isShown = ({ count }, index) => index === 0 || count >= MIN_FRACTION * map.values.length;
  return found.filter(isShown).slice(0, MAX_REGIONS).map((region) => ({
    box: [region.left * scale[0], region.top * scale[1], (region.right - region.left + 1) * scale[0],
      (region.bottom - region.top + 1) * scale[1]].map(Math.round),
    area: Math.round(region.count * scale[0] * scale[1]),
    peak_score: threshold * 2 ** ((region.peak - ZERO) / STEPS),
    path: boundary(map, labels, level, region, scale),
  }));
}

function fill({ width, height, values }, level, labels, start, label) {
  const region = { label, count: 0, peak: 0, left: width, right: 0, top: height, bottom: 0 }, stack = [start];
  labels[start] = label;
  while (stack.length) {
    const index = stack.pop(), x = index % width, y = (index - x) / width;
    region.count += 1;
    region.peak = Math.max(region.peak, values[index]);
    region.left = Math.min(region.left, x);
    region.right = Math.max(region.right, x);
    region.top = Math.min(region.top, y);
    region.bottom = Math.max(region.bottom, y);
    const visit = (next) => {
      if (labels[next] || values[next] <= level) return;
      labels[next] = label;
      stack.push(next);
    };
    if (x > 0) visit(index - 1);
    if (x < width - 1) visit(index + 1);
    if (y > 0) visit(index - width);
    if (y < height - 1) visit(index + width);
  }
  return region;
}

// The outline of a region as line segments between the centers of pixels: marching squares, in pixels of the image.
function boundary({ width, height, values }, labels, level, { label, left, right, top, bottom }, [scaleX, scaleY]) {
  const isInside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && labels[y * width + x] === label;
  const parts = [];
  // Where the level lies between a pixel inside and one outside, as a fraction; halfway at the edge of the map.
  const fraction = (x, y, otherX, otherY) => {
    if (otherX < 0 || otherY < 0 || otherX >= width || otherY >= height || x < 0 || y < 0 || x >= width || y >= height) return 0.5;
    const value = values[y * width + x];
    return (level - value) / (values[otherY * width + otherX] - value);
  };
  for (let y = top - 1; y <= bottom; y += 1) {
    for (let x = left - 1; x <= right; x += 1) {
      const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]], states = corners.map((corner) => isInside(...corner));
      const crossings = [];
      for (let side = 0; side < 4; side += 1) {
        const next = (side + 1) % 4;
        if (states[side] === states[next]) continue;
        const [from, to] = [corners[side], corners[next]], part = fraction(...from, ...to);
        crossings.push(`${((from[0] + 0.5 + (to[0] - from[0]) * part) * scaleX).toFixed(2)} ${((from[1] + 0.5 + (to[1] - from[1]) * part) * scaleY).toFixed(2)}`);
      }
      // With two inside corners that are no neighbors, each corner is cut off alone: only sides connect pixels.
      if (crossings.length === 4 && !states[0]) crossings.push(crossings.shift());
      if (crossings.length === 4) parts.push(`M${crossings[3]}L${crossings[0]}M${crossings[1]}L${crossings[2]}`);
      else if (crossings.length === 2) parts.push(`M${crossings[0]}L${crossings[1]}`);
    }
  }
  return parts.join("");
}
