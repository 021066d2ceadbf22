// Elements and words. Everything that comes from the index is set as text, never as markup.

export const element = (id) => document.getElementById(id);

export function make(tag, kind = "", text = null) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== null) made.textContent = text;
  return made;
}

export function button(words, kind, press) {
  const made = make("button", kind, words);
  made.type = "button";
  made.addEventListener("click", press);
  return made;
}

export const say = (text) => { element("status").textContent = text; };
export const head = (text) => { element("heading").textContent = text; };
export const number = (value) => value.toLocaleString("en");
export const counted = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;
export const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
export const between = (value, low, high) => Math.min(high, Math.max(low, value));

export const named = (item) => item.label || "no label";
export const similarity = (score) => score.toFixed(2).replace("-", "−").replace(/^−0\.00$/, "0.00");

// Words with a measured meaning: the shares are of searches for things that are not in the catalogue.
const IDENTICAL = 0.9995;
const STRONG = 0.99;
const POSSIBLE = 0.9;

export function strength({ score, confidence, is_match: match }) {
  if (score >= IDENTICAL) return "identical";
  if (confidence === null) return null;
  if (match !== false && confidence >= STRONG) return "strong";
  return confidence >= POSSIBLE ? "possible" : "weak";
}

export function explained({ score, confidence }) {
  if (confidence === null) return "This model was not calibrated, so there is no measure of how much that is.";
  const share = (Math.floor(confidence * 1000) / 10).toLocaleString("en");
  const similar = score >= IDENTICAL ? "this" : "as";
  return `Of searches for things that are not in a catalogue, ${share} % found nothing ${similar} similar.`;
}

export async function copyText(text, shown) {
  try {
    await navigator.clipboard.writeText(text);
    return "Copied.";
  } catch {
    // Over plain HTTP from another machine, browsers offer no clipboard.
    const range = document.createRange();
    range.selectNodeContents(shown);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy") ? "Copied." : "Selected; press Ctrl+C to copy.";
  }
}
