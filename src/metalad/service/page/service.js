// Requests to the service that this page comes from. Addresses are relative, so that a proxy can add a prefix.

const TOKEN_KEY = "metalad-token";
const MAX_RETRIES = 100;

export class ServiceError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let kept = ""; // where the browser denies the page a storage

export const token = {
  get() {
    try { return sessionStorage.getItem(TOKEN_KEY) ?? kept; } catch { return kept; }
  },
  set(value) {
    kept = value;
    try { sessionStorage.setItem(TOKEN_KEY, value); } catch { /* then a reload requests it again */ }
  },
};

const pause = (milliseconds, signal) => new Promise((resolve, reject) => {
  const stopped = () => { clearTimeout(timer); reject(signal.reason); };
  const timer = setTimeout(() => { signal?.removeEventListener("abort", stopped); resolve(); }, milliseconds);
  signal?.addEventListener("abort", stopped, { once: true });
});

// One line from a problem details document, or from the status where there is none.
async function failure(response) {
  let text = "";
  try {
    const problem = await response.json();
    text = problem.detail || problem.title;
  } catch { /* a proxy answers in its own format */ }
  return new ServiceError(text || `the service answered ${response.status} ${response.statusText}`.trim(), response.status);
}

// Send a request; where the service is busy, wait as long as it requests and send it again.
async function request(path, { query = {}, waiting = () => {}, ...options } = {}) {
  const parameters = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined));
  const address = parameters.size ? `${path}?${parameters}` : path;
  for (let tries = 0; ; tries += 1) {
    const headers = { Accept: "application/json", ...options.headers };
    if (token.get()) headers.Authorization = `Bearer ${token.get()}`;
    let response;
    try {
      response = await fetch(address, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServiceError("The service cannot be reached; check that it runs, and try again", 0);
    }
    if (response.ok) return response.status === 204 ? null : response.json();
    const seconds = Number(response.headers.get("Retry-After"));
    if (![429, 503].includes(response.status) || tries === MAX_RETRIES) throw await failure(response);
    waiting(true);
    await pause(1000 * (Number.isFinite(seconds) && seconds > 0 ? Math.min(seconds, 60) : 1), options.signal);
    waiting(false);
  }
}

async function picture(file) {
  let body;
  try {
    body = await file.arrayBuffer();
  } catch {
    throw new ServiceError("The file cannot be read; it was changed, moved or deleted", 0);
  }
  return { method: "POST", body, headers: { "Content-Type": file.type || "application/octet-stream" } };
}

export const models = () => request("v1/models");

export async function predict(file, model, include, options) {
  const answer = await request("v1/predict", { ...await picture(file), query: { model, include }, ...options });
  return { ...answer.results[0], hash: answer.hash };
}

export const sendFeedback = async (file, model, label, threshold, hash) =>
  request("v1/feedback", { ...await picture(file), query: { model, label, threshold, hash } });

export const withdrawFeedback = (model, sha256) =>
  request("v1/feedback", { method: "DELETE", query: { model, sha256 } });
