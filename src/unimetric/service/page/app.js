"use strict";

// Everything that comes from the index is set as text, never as markup.

const element = (id) => document.getElementById(id);
const STEP = 24;
const SENT_SIDE = 1600; // longer side of a picture that is made here to be sent; models read far fewer pixels
const AS_THEY_ARE = ["image/jpeg", "image/png", "image/webp"];
const WHOLE = Object.freeze({ x: 0, y: 0, w: 1, h: 1 });
const LEAST = 0.05; // the smallest crop, as a share of a side

let limits = { max_upload_bytes: 1e7, max_pixels: 5e7, max_k: 100 };
let catalogues = [];
let examples = [];
let current = { query: null, datasets: new Set(), k: STEP, answer: null };
let running = null; // the search under way, to be cancelled by the next one
const visits = new Map(); // what the entries of the browser's history showed
let visit = 0;

class Problem extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

// --- The service ---------------------------------------------------------------------------------------------------

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, seconds * 1000);
  signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
});

async function ask(path, options = {}) {
  for (let attempt = 0; ; attempt += 1) {
    let response;
    try {
      response = await fetch(path, { credentials: "same-origin", ...options });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Problem("offline", "");
    }
    if (response.ok) return response.json();
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
  timeout: () => "The search took too long. Try again, or use a smaller picture.",
  slow_upload: () => "The upload took too long. Use a smaller picture, or crop it.",
  too_large: (name) => `${name} is larger than the ${megabytes(limits.max_upload_bytes)} that the service takes. Make it smaller.`,
  too_many_pixels: (name) => `${name} has more pixels than the service takes (${Math.round(limits.max_pixels / 1e6)} million). Make it smaller.`,
  empty_image: (name) => `${name} is empty. Choose another file.`,
  truncated_image: (name) => `${name} is cut off before its end; perhaps a download was not finished. Choose another file.`,
  not_an_image: (name) => `${name} is not a picture that can be read. Use a JPEG, PNG, WebP, GIF, BMP or TIFF file.`,
  unreadable_image: (name) => `${name} cannot be read; the file may be damaged. Save it as JPEG or PNG, or choose another.`,
  animated_image: (name) => `${name} is animated. Use a single picture of it.`,
  item_not_found: () => "This item is no longer in the catalogue.",
};
const AGAIN = new Set(["offline", "busy", "starting", "stopping", "timeout", "slow_upload", "internal", "unknown", "database_unusable"]);

const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;

function sentence(problem, query) {
  const known = TROUBLE[problem.code];
  if (known) return known(query?.kind === "file" && query.name ? `“${query.name}”` : "This picture");
  const text = problem.message || "something went wrong";
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

// --- Words for people ----------------------------------------------------------------------------------------------

const say = (text) => { element("status").textContent = text; };
const head = (text) => { element("heading").textContent = text; };
const number = (value) => value.toLocaleString("en");
const counted = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;

function complain(text, retry = null) {
  const box = element("trouble");
  box.replaceChildren();
  box.classList.toggle("trouble", Boolean(text));
  if (!text) return;
  box.append(make("p", "", text));
  if (retry) {
    const button = make("button", "button", "Try again");
    button.type = "button";
    button.addEventListener("click", retry);
    box.append(button);
  }
}

function make(tag, kind = "", text = null) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== null) made.textContent = text;
  return made;
}

const named = (item) => item.label || "no label";
const breakable = (text) => text.replace(/([_./\\-])(?=\w)/g, "$1\u200b"); // long names may be broken after these
const similarity = (score) => score.toFixed(2).replace("-", "−").replace(/^−0\.00$/, "0.00");
const percent = (confidence) => `${Math.floor(confidence * 100)} %`;

// --- Results -------------------------------------------------------------------------------------------------------

function card(item) {
  const row = make("li", "card");
  const button = make("button");
  button.type = "button";
  button.title = item.path;
  const view = make("span", "view");
  const image = make("img");
  image.alt = "";
  image.loading = "lazy";
  image.decoding = "async";
  image.src = item.image;
  view.append(image);
  const words = make("span", "words");
  words.append(make("span", "label", breakable(named(item))), make("span", "dataset", item.dataset));
  let spoken = `${named(item)}, ${item.dataset}`;
  if (item.score !== undefined) {
    const numbers = make("span", "numbers");
    numbers.append(make("span", "score", similarity(item.score)));
    spoken += `, similarity ${similarity(item.score)}`;
    words.append(numbers);
    if (item.confidence !== null) {
      numbers.append(make("span", "sure", `${percent(item.confidence)} sure`));
      const bar = make("span", "bar");
      const filled = make("span");
      filled.style.width = `${item.confidence * 100}%`;
      bar.append(filled);
      words.append(bar);
      spoken += `, ${percent(item.confidence)} sure`;
    }
  }
  button.setAttribute("aria-label", `${spoken}. More like this`);
  button.append(view, words);
  button.addEventListener("click", () => moreLike(item));
  row.append(button);
  return row;
}

const fill = (id, items) => element(id).replaceChildren(...items.map(card));

function clearResults() {
  fill("results", []);
  fill("weak", []);
  element("weak-heading").hidden = true;
  element("more").hidden = true;
}

function chosen() {
  const [first, ...others] = current.datasets;
  if (first === undefined) return "the catalogue";
  return others.length ? "these catalogues" : first.length <= 40 ? first : "this catalogue";
}

function showAnswer({ matches, no_match: none, threshold }) {
  const good = matches.filter((match) => match.is_match !== false);
  const weak = matches.filter((match) => match.is_match === false);
  const where = chosen();
  if (!matches.length) {
    head(`Nothing is in ${where}`);
    say("There are no items to compare with.");
  } else if (none && !(matches[0].confidence >= 0.5)) {
    head(`Nothing in ${where} looks like this`);
    say("No item is similar enough to be a match.");
  } else if (none) {
    head(`No sure match in ${where}`);
    say("Some items are alike, but none enough to be sure.");
  } else if (threshold === null) {
    head("Most similar");
    say(`${counted(matches.length, "item", "items")}, the most similar first. This catalogue has no threshold that says which of them match.`);
  } else {
    head(counted(good.length, "match", "matches"));
    say(good.length === matches.length ? "The most similar first." : "The most similar first; weaker ones are below.");
  }
  fill("results", good);
  fill("weak", weak);
  const title = element("weak-heading");
  title.hidden = !weak.length;
  title.textContent = none ? "The nearest ones" : "Less alike";
  element("more").hidden = matches.length < current.k || current.k >= Math.min(limits.max_k, 8 * STEP);
}

function showStart() {
  clearResults();
  complain("");
  const shown = examples.filter((item) => !current.datasets.size || current.datasets.has(item.dataset)).slice(0, 12);
  const total = catalogues.reduce((sum, catalogue) => sum + catalogue.items, 0);
  if (!total) {
    head("The catalogue is empty");
    say("Add images with: unimetric index MODEL FOLDER --db DB");
    return;
  }
  head("Or start from one of these");
  say(current.datasets.size ? `Searches look in ${chosen()} only.` : "");
  fill("results", shown);
}

// --- Searching -----------------------------------------------------------------------------------------------------

async function search({ focus = false } = {}) {
  const state = current;
  const query = state.query;
  running?.abort();
  if (!query) {
    running = null;
    element("answers").setAttribute("aria-busy", "false");
    showStart();
    return;
  }
  const controller = new AbortController();
  running = controller;
  element("answers").setAttribute("aria-busy", "true");
  complain("");
  say("Searching…");
  if (!state.answer) head("Searching…");
  try {
    const answer = await answerTo(state, query, controller.signal);
    if (running !== controller) return;
    state.answer = answer;
    showAnswer(answer);
    if (focus) element("heading").focus({ preventScroll: true });
  } catch (error) {
    if (running !== controller) return;
    if (!(error instanceof Problem)) console.error(error);
    clearResults();
    state.answer = null;
    head("No results");
    say("");
    const problem = error instanceof Problem ? error : new Problem("page", "something went wrong in this page; load it again");
    complain(sentence(problem, query), AGAIN.has(problem.code) ? () => search({ focus: true }) : null);
  } finally {
    if (running === controller) {
      running = null;
      element("answers").setAttribute("aria-busy", "false");
    }
  }
}

async function answerTo(state, query, signal) {
  const filters = { k: Math.min(state.k, limits.max_k) };
  if (state.datasets.size) filters.datasets = [...state.datasets];
  if (query.kind === "item") {
    const headers = { "Content-Type": "application/json" };
    return ask("v1/search", { method: "POST", headers, body: JSON.stringify({ id: query.item.id, ...filters }), signal });
  }
  const send = (image) => {
    const form = new FormData();
    form.append("image", image, "picture");
    form.append("k", String(filters.k));
    for (const name of filters.datasets || []) form.append("datasets", name);
    return ask("v1/search", { method: "POST", body: form, signal });
  };
  const image = await sendable(query);
  try {
    return await send(image);
  } catch (error) {
    // What the browser can show, it can also turn into a plain picture.
    const mendable = ["animated_image", "not_an_image", "unreadable_image"].includes(error.code);
    if (!mendable || !query.shown || image !== query.file) throw error;
    return send(await redrawn(query));
  }
}

async function sendable(query) {
  if (!query.file.size) throw new Problem("empty_image", "");
  const small = query.file.size <= limits.max_upload_bytes;
  if (!query.shown) {
    if (!small) throw new Problem("too_large", "");
    return query.file;
  }
  const { naturalWidth: width, naturalHeight: height } = query.shown;
  const plain = AS_THEY_ARE.includes(query.file.type) && width * height <= limits.max_pixels;
  return isWhole(query.crop) && small && plain ? query.file : redrawn(query);
}

async function redrawn({ shown, crop }) {
  const { naturalWidth: width, naturalHeight: height } = shown;
  const [w, h] = [Math.max(1, crop.w * width), Math.max(1, crop.h * height)];
  const scale = Math.min(1, SENT_SIDE / Math.max(w, h), Math.sqrt(limits.max_pixels / (w * h)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.floor(w * scale));
  canvas.height = Math.max(1, Math.floor(h * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(shown, crop.x * width, crop.y * height, w, h, 0, 0, canvas.width, canvas.height);
  for (const quality of [0.92, 0.8, 0.5]) {
    const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", quality); });
    if (!blob) throw new Problem("too_many_pixels", "");
    if (blob.size <= limits.max_upload_bytes) return blob;
  }
  throw new Problem("too_large", "");
}

// --- The query -----------------------------------------------------------------------------------------------------

const isWhole = (crop) => crop.w >= 0.999 && crop.h >= 0.999;

function loaded(url) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image.naturalWidth && image.naturalHeight ? image : null);
    image.onerror = () => resolve(null);
    image.src = url;
  });
}

async function searchFile(file) {
  const url = URL.createObjectURL(file);
  const query = { kind: "file", file, name: file.name || "", url, shown: file.size ? await loaded(url) : null, crop: { ...WHOLE } };
  go(query);
  search();
}

function moreLike(item) {
  go({ kind: "item", item });
  search({ focus: true });
}

// A new entry in the browser's history, so that Back shows what was there.
function go(query) {
  current = { query, datasets: new Set(current.datasets), k: STEP, answer: null };
  visit += 1;
  visits.set(visit, current);
  history.pushState({ visit, item: query?.kind === "item" ? query.item : null }, "");
  showQuery();
  window.scrollTo({ top: 0 });
}

function come(state) {
  running?.abort();
  running = null;
  const item = state?.item;
  current = visits.get(state?.visit) || { query: item ? { kind: "item", item } : null, datasets: new Set(), k: STEP, answer: null };
  if (state?.visit !== undefined) visits.set(state.visit, current);
  complain("");
  showQuery();
  showChips();
  element("answers").setAttribute("aria-busy", "false");
  if (current.query && current.answer) {
    showAnswer(current.answer);
    element("heading").focus({ preventScroll: true });
  } else {
    search({ focus: true });
  }
}

function showQuery() {
  const query = current.query;
  document.body.classList.toggle("start", !query);
  const item = query?.kind === "item" ? query.item : null;
  const visible = Boolean(item || query?.shown);
  element("stage").hidden = !visible;
  element("stage").classList.toggle("item", Boolean(item));
  element("no-preview").hidden = !query || visible;
  element("no-preview").textContent = query?.name ? `No preview of ${query.name}` : "No preview";
  element("crop-hint").hidden = !query?.shown;
  element("file-words").textContent = query ? "New picture" : "Choose a picture";
  element("query-heading").textContent = item ? "More like this item" : "Your picture";
  element("about").hidden = !item;
  document.title = item ? `Like ${named(item)} – Search by image` : "Search by image";
  const picture = element("picture");
  if (visible) {
    picture.src = item ? item.image : query.url;
    if (query.shown) stage.style.setProperty("--ratio", query.shown.naturalWidth / query.shown.naturalHeight);
    picture.alt = item ? `${named(item)}, ${item.dataset}` : `Your picture${query.name ? `, ${query.name}` : ""}`;
  } else {
    picture.removeAttribute("src");
  }
  if (item) showAbout(item);
  showFrame();
}

function showAbout(item) {
  const box = element("about");
  box.replaceChildren(make("b", "", breakable(`Like ${named(item)}`)), make("span", "soft", item.dataset), make("p", "path", breakable(item.path)));
  const values = Object.entries(item.metadata || {}).filter(([, value]) => value !== null);
  if (!values.length) return;
  const list = make("dl");
  for (const [name, value] of values) list.append(make("dt", "", name), make("dd", "", String(value)));
  box.append(list);
}

// Small pictures are shown larger, all within the same height.
element("picture").addEventListener("load", ({ target }) => {
  if (target.naturalHeight) stage.style.setProperty("--ratio", target.naturalWidth / target.naturalHeight);
});

// --- Crop ----------------------------------------------------------------------------------------------------------

const frame = element("frame");
const stage = element("stage");
let dragged = null;
let delayed = 0;

const between = (value, low, high) => Math.min(high, Math.max(low, value));

function showFrame() {
  const crop = current.query?.crop || WHOLE;
  const cropped = !isWhole(crop);
  stage.classList.toggle("cropped", cropped);
  frame.style.left = `${crop.x * 100}%`;
  frame.style.top = `${crop.y * 100}%`;
  frame.style.width = `${crop.w * 100}%`;
  frame.style.height = `${crop.h * 100}%`;
  frame.style.right = frame.style.bottom = "auto";
  const share = (value) => `${Math.round(value * 100)} %`;
  frame.setAttribute("aria-label", cropped
    ? `Crop: ${share(crop.w)} wide and ${share(crop.h)} high, ${share(crop.x)} from the left, ${share(crop.y)} from the top`
    : "Crop: the whole picture");
  element("whole").hidden = !cropped;
}

function setCrop({ x, y, w, h }, wait = null) {
  const query = current.query;
  if (query?.kind !== "file" || !query.shown) return;
  w = between(w, LEAST, 1);
  h = between(h, LEAST, 1);
  query.crop = { x: between(x, 0, 1 - w), y: between(y, 0, 1 - h), w, h };
  showFrame();
  clearTimeout(delayed);
  if (wait !== null) delayed = setTimeout(() => { if (current.query === query) search(); }, wait);
}

function point(event) {
  const box = element("picture").getBoundingClientRect();
  return { x: between((event.clientX - box.left) / box.width, 0, 1), y: between((event.clientY - box.top) / box.height, 0, 1) };
}

stage.addEventListener("pointerdown", (event) => {
  const query = current.query;
  if (event.button || query?.kind !== "file" || !query.shown) return;
  const corner = event.target.dataset?.corner;
  const before = { ...query.crop };
  // A finger on a whole picture scrolls; it takes the corners.
  if (event.pointerType === "touch" && !corner && (isWhole(before) || event.target !== frame)) return;
  const kind = corner || (event.target === frame && !isWhole(before) ? "move" : "draw");
  dragged = { kind, before, from: point(event), moved: false };
  stage.setPointerCapture(event.pointerId);
  event.preventDefault();
  frame.focus({ preventScroll: true, focusVisible: false });
});

stage.addEventListener("pointermove", (event) => {
  if (!dragged) return;
  const at = point(event);
  const { kind, before, from } = dragged;
  const [dx, dy] = [at.x - from.x, at.y - from.y];
  const box = element("picture").getBoundingClientRect();
  if (!dragged.moved && Math.hypot(dx * box.width, dy * box.height) < 5) return;
  dragged.moved = true;
  if (kind === "move") {
    setCrop({ ...before, x: before.x + dx, y: before.y + dy });
  } else if (kind === "draw") {
    setCrop({ x: Math.min(at.x, from.x), y: Math.min(at.y, from.y), w: Math.abs(dx), h: Math.abs(dy) });
  } else {
    const right = kind.includes("e") ? between(before.x + before.w + dx, before.x + LEAST, 1) : before.x + before.w;
    const bottom = kind.includes("s") ? between(before.y + before.h + dy, before.y + LEAST, 1) : before.y + before.h;
    const left = kind.includes("w") ? between(before.x + dx, 0, right - LEAST) : before.x;
    const top = kind.includes("n") ? between(before.y + dy, 0, bottom - LEAST) : before.y;
    setCrop({ x: left, y: top, w: right - left, h: bottom - top });
  }
});

function release(event) {
  if (!dragged) return;
  const { moved, before } = dragged;
  dragged = null;
  if (event.type === "pointercancel") setCrop(before);
  else if (moved) setCrop(current.query.crop, 0);
}
stage.addEventListener("pointerup", release);
stage.addEventListener("pointercancel", release);

frame.addEventListener("keydown", (event) => {
  const query = current.query;
  if (query?.kind !== "file" || event.ctrlKey || event.metaKey || event.altKey) return;
  const { x, y, w, h } = query.crop;
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let next = null;
  if (arrows[event.key]) {
    const [dx, dy] = arrows[event.key].map((step) => step * 0.03);
    next = event.shiftKey ? { x, y, w: Math.min(w + dx, 1 - x), h: Math.min(h + dy, 1 - y) } : { x: x + dx, y: y + dy, w, h };
  } else if (event.key === "-" || event.key === "+" || event.key === "=") {
    const factor = event.key === "-" ? 0.88 : 1 / 0.88;
    const [width, height] = [between(w * factor, LEAST, 1), between(h * factor, LEAST, 1)];
    next = { x: x + (w - width) / 2, y: y + (h - height) / 2, w: width, h: height };
  } else if (event.key === "Escape") {
    next = { ...WHOLE };
  } else if (event.key === "Enter") {
    setCrop(query.crop, 0);
  } else {
    return;
  }
  event.preventDefault();
  if (next) setCrop(next, 500);
});

element("whole").addEventListener("click", () => {
  setCrop({ ...WHOLE }, 0);
  frame.focus();
});

// --- Catalogues ----------------------------------------------------------------------------------------------------

function showChips() {
  const box = element("chips");
  box.hidden = catalogues.length < 2;
  const total = catalogues.reduce((sum, catalogue) => sum + catalogue.items, 0);
  const chip = (words, count, pressed, press) => {
    const button = make("button", "chip");
    button.type = "button";
    button.title = words;
    button.append(make("span", "", words), " ", make("small", "", number(count)));
    button.setAttribute("aria-pressed", String(pressed));
    button.addEventListener("click", () => {
      const place = [...box.children].indexOf(button);
      press();
      current.answer = null;
      current.k = STEP;
      showChips();
      box.children[place].focus();
      search();
    });
    return button;
  };
  box.replaceChildren(
    chip("All", total, !current.datasets.size, () => current.datasets.clear()),
    ...catalogues.map(({ name, items }) => chip(name, items, current.datasets.has(name), () => {
      if (!current.datasets.delete(name)) current.datasets.add(name);
    })),
  );
}

// --- Ways in -------------------------------------------------------------------------------------------------------

for (const id of ["file", "photo"]) {
  element(id).addEventListener("change", ({ target }) => {
    const [file] = target.files;
    target.value = ""; // so that the same file can be chosen again
    if (file) searchFile(file);
  });
}

document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData?.files || [];
  if (file) searchFile(file);
  else complain("There is no picture in the clipboard. Copy a picture, not a link or a text.");
});

let depth = 0;
const dragging = (on) => document.body.classList.toggle("dragging", on);
document.addEventListener("dragenter", (event) => { event.preventDefault(); depth += 1; dragging(true); });
document.addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); dragging(depth > 0); });
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  dragging(false);
  const { files } = event.dataTransfer;
  if (!files.length) complain("This is not a picture file. Save the picture first, then drop the file.");
  else searchFile(files[0]);
});

element("more").addEventListener("click", () => {
  const seen = document.querySelectorAll(".card").length;
  current.k += STEP;
  search().then(() => document.querySelectorAll(".card button")[seen]?.focus());
});

element("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (current.query) {
    go(null);
    search();
  }
});

window.addEventListener("popstate", (event) => come(event.state));

// --- Start ---------------------------------------------------------------------------------------------------------

async function start() {
  try {
    const [described, sampled] = await Promise.all([ask("v1/datasets"), ask("v1/items?n=60")]);
    limits = described;
    catalogues = described.datasets;
    examples = sampled.items;
    element("size").textContent = catalogues.length === 1
      ? `${counted(described.items, "image", "images")} in ${catalogues[0].name}`
      : `${counted(described.items, "image", "images")} in ${catalogues.length} catalogues`;
  } catch (error) {
    document.body.classList.add("start");
    head("The catalogue cannot be shown");
    say("");
    complain(sentence(error instanceof Problem ? error : new Problem("page", String(error)), null), () => {
      complain("");
      start();
    });
    return;
  }
  showChips();
  if (visits.size) return; // a picture was chosen before all this had come
  if (history.state?.item) {
    visit = history.state.visit;
    come(history.state);
    return;
  }
  history.replaceState({ visit: 0, item: null }, "");
  visits.set(0, current);
  showQuery();
  showStart();
}

document.body.classList.add("start");
start();
