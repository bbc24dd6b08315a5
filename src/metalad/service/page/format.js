// Texts and elements that several parts of the page use.

export const byId = (id) => document.getElementById(id);

// Four significant digits, and more where a score would look equal to the threshold although it is not.
export function digits(value, threshold = null) {
  for (let count = 4; ; count += 1) {
    const text = plain(value, count);
    if (threshold === null || value === threshold || count === 17 || text !== plain(threshold, count)) return text;
  }
}

function plain(value, count) {
  const text = value.toPrecision(count);
  return text.includes("e+") ? String(Math.round(value)) : text;
}

export const percent = (part, whole) => `${whole ? Number((100 * part / whole).toPrecision(2)) : 0} %`;

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

export function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

// Call a function at most once per frame, with the arguments of the last call.
export function perFrame(work) {
  let frame = 0;
  return () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(work);
  };
}

// Announce a text to screen readers.
export function announce(text) {
  byId("live").textContent = text;
}
