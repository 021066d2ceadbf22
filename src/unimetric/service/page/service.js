// Requests to the service, and its errors in words for people.

import { authorized } from "./access.js";
import { megabytes, say } from "./dom.js";

export class Problem extends Error {
  constructor(code, message = "", file = null) {
    super(message);
    this.code = code;
    this.file = file; // name of the file at fault, if that is known
  }
}

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, seconds * 1000);
  signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
});

export async function ask(path, options = {}, read = (response) => response.json()) {
  for (let attempt = 0; ; attempt += 1) {
    let response;
    try {
      response = await authorized(path, options);
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Problem("offline");
    }
    if (response.ok) return read(response);
    const { code, message } = await response.json().then((body) => body.error, () => ({ code: "unknown", message: `status ${response.status}` }));
    const patience = code === "starting" ? 60 : code === "busy" ? 3 : 0;
    if (attempt >= patience) throw new Problem(code, message);
    if (code === "starting") say("The model is still being loaded…");
    await pause(code === "starting" ? 1 : Number(response.headers.get("Retry-After")) || 1, options.signal);
  }
}

const TROUBLE = {
  offline: () => "The search service does not answer. Check that it is still running, then try again.",
  busy: () => "The service has too much to do just now. Try again in a moment.",
  starting: () => "The model is still not loaded. Try again in a moment.",
  stopping: () => "The service is being stopped. Try again when it is back.",
  unauthorized: () => "This search is private. Try again to enter its token.",
  timeout: () => "The search took too long. Try again, or use a smaller picture.",
  slow_upload: () => "The upload took too long. Use a smaller picture, or crop it.",
  too_large: (name, limits) => `${name} is larger than the ${megabytes(limits.max_upload_bytes)} that the service accepts. Make it smaller.`,
  too_many_pixels: (name, limits) => `${name} has more pixels than the service accepts (${Math.round(limits.max_pixels / 1e6)} million). Make it smaller.`,
  empty_image: (name) => `${name} is empty. Choose another file.`,
  truncated_image: (name) => `${name} is cut off before its end; perhaps a download was not finished. Choose another file.`,
  not_an_image: (name) => `${name} is not a picture that can be read. Use a JPEG, PNG, WebP, GIF, BMP or TIFF file.`,
  unreadable_image: (name) => `${name} cannot be read; the file may be damaged. Save it as JPEG or PNG, or choose another.`,
  animated_image: (name) => `${name} is animated. Use a single picture of it.`,
  item_not_found: () => "This item is no longer in the catalogue.",
  page: () => "Something went wrong in this page. Load it again.",
};
const AGAIN = new Set(["offline", "busy", "starting", "stopping", "timeout", "slow_upload", "unauthorized", "internal", "unknown", "database_unusable"]);

export const canTryAgain = (problem) => AGAIN.has(problem.code);

export function asProblem(error) {
  if (error instanceof Problem) return error;
  console.error(error);
  return new Problem("page");
}

// `names` are those of the files that were sent.
export function sentence(problem, names, limits) {
  const known = TROUBLE[problem.code];
  const name = problem.file ?? (names.length === 1 ? names[0] : "");
  if (known) return known(name ? `“${name}”` : names.length > 1 ? "One of the pictures" : "This picture", limits);
  const text = problem.message || "something went wrong";
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}
