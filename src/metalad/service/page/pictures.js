// Pictures of the user in the browser: thumbnails, and which files the browser shows as the service reads them.

const THUMBNAIL = 176;
const MAX_SIDE = 2048;
const SHOWN_TYPES = ["image/jpeg", "image/png", "image/webp", "image/bmp"];
const PNG = [0x89, 0x50, 0x4e, 0x47];

// Whether the browser shows the pixels that are scored. A PNG with 16 bits or an alpha channel is read differently.
async function isShownAsScored(file) {
  if (file.type && !SHOWN_TYPES.includes(file.type)) return false;
  const header = new Uint8Array(await file.slice(0, 26).arrayBuffer());
  if (!PNG.every((byte, index) => header[index] === byte)) return true;
  return header[24] <= 8 && ![4, 6].includes(header[25]);
}

// Return a bitmap, or null where the picture must come from the service.
export async function open(file) {
  try {
    return await isShownAsScored(file) ? await createImageBitmap(file) : null;
  } catch {
    return null;
  }
}

export function draw(canvas, bitmap, maxSide = MAX_SIDE) {
  const scale = Math.min(1, maxSide / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
}

// Return the address of a small JPEG of a bitmap.
export async function thumbnail(bitmap) {
  const canvas = document.createElement("canvas");
  draw(canvas, bitmap, THUMBNAIL);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.8));
  return URL.createObjectURL(blob);
}
