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

// Fills an element with a text that may be broken after its underscores, dots, dashes and slashes.
export function breakable(made, text) {
  made.append(...text.match(/[^_./-]*[_./-]*/g).flatMap((part, place) => (place ? [make("wbr"), part] : [part])));
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

export function explained({ confidence }) {
  if (confidence === null) return "This catalogue was not calibrated, so this number has no measured meaning.";
  const share = Math.round(confidence * 100);
  return `When the catalogue was calibrated, ${share} % of the answers that were as similar were right.`;
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
