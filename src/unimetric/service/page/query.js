// The picture that is searched for: made fit to be sent, shown, and cropped.

import { setPicture } from "./access.js";
import { between, button, element, make, named } from "./dom.js";
import { Problem } from "./service.js";

const SENT_SIDE = 1600; // longer side of a picture that is redrawn to be sent; models read far fewer pixels
const AS_THEY_ARE = ["image/jpeg", "image/png", "image/webp"];
export const WHOLE = Object.freeze({ x: 0, y: 0, w: 1, h: 1 });
export const MOST = 10; // pictures of one query
const LEAST = 0.05; // the smallest crop, as a share of a side

const isWhole = (crop) => crop.w >= 0.999 && crop.h >= 0.999;

// --- To be sent ----------------------------------------------------------------------------------------------------

export function loaded(url) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image.naturalWidth && image.naturalHeight ? image : null);
    image.onerror = () => resolve(null);
    image.src = url;
  });
}

export async function sendable(part, limits) {
  if (!part.file.size) throw new Problem("empty_image", "", part.name);
  const small = part.file.size <= limits.max_upload_bytes;
  if (!part.shown) {
    if (!small) throw new Problem("too_large", "", part.name);
    return part.file;
  }
  const { naturalWidth: width, naturalHeight: height } = part.shown;
  const plain = AS_THEY_ARE.includes(part.file.type) && width * height <= limits.max_pixels;
  return isWhole(part.crop) && small && plain ? part.file : redrawn(part, limits);
}

export async function redrawn({ shown, crop }, limits) {
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
    if (!blob) throw new Problem("too_many_pixels");
    if (blob.size <= limits.max_upload_bytes) return blob;
  }
  throw new Problem("too_large");
}

// --- Shown ---------------------------------------------------------------------------------------------------------

const frame = element("frame");
const stage = element("stage");
let shownPart = null;
let cropChanged = () => {};
let removed = () => {};
let dragged = null;
let delayed = 0;

export function onChange(search, remove) {
  cropChanged = search;
  removed = remove;
}

// A query is { parts, at }: its pictures, files or items, and the one that is shown large.
export function showQuery(query) {
  shownPart = query ? query.parts[query.at] : null;
  const several = query?.parts.length > 1;
  document.body.classList.toggle("start", !query);
  const item = shownPart?.kind === "item" ? shownPart.item : null;
  const visible = Boolean(item || shownPart?.shown);
  stage.hidden = !visible;
  stage.classList.toggle("item", Boolean(item));
  element("query").classList.remove("enlarged");
  element("no-preview").hidden = !query || visible;
  element("no-preview").textContent = shownPart?.name ? `No preview of ${shownPart.name}` : "No preview";
  element("crop-hint").hidden = element("enlarge").hidden = !shownPart?.shown;
  element("file-words").textContent = query ? "New picture" : "Choose a picture";
  element("add").hidden = !query || query.parts.length >= MOST;
  element("query-heading").textContent = several ? "Your pictures" : item ? "More like this item" : "Your picture";
  const like = several ? `Like ${query.parts.length} pictures` : item ? `Like ${named(item)}` : "";
  document.title = like ? `${like} – Search by image` : "Search by image";
  showPicture(shownPart, item);
  const about = element("about");
  about.hidden = !like;
  about.replaceChildren(...(like ? [make("b", "", like), make("span", "soft", several ? "similar to all of them" : item.dataset)] : []));
  showParts(query);
  showFrame();
}

function showParts(query) {
  const box = element("parts");
  box.hidden = !(query?.parts.length > 1);
  box.replaceChildren(...(box.hidden ? [] : query.parts.map((part, place) => {
    const row = make("li");
    const words = wordsOf(part, place);
    const select = button(null, "part", () => {
      query.at = place;
      showQuery(query);
      element("parts").children[place].querySelector(".part").focus();
    });
    select.setAttribute("aria-pressed", String(place === query.at));
    select.setAttribute("aria-label", `Show ${words}`);
    const image = make("img");
    image.alt = "";
    if (part.kind === "file") image.src = part.url;
    else if (part.item) setPicture(image, part.item.image);
    select.append(image);
    const remove = button("×", "remove", () => removed(place));
    remove.setAttribute("aria-label", `Remove ${words}`);
    row.append(select, remove);
    return row;
  })));
}

function wordsOf(part, place) {
  const name = part.kind === "item" ? part.item && named(part.item) : part.name;
  return `picture ${place + 1}${name ? `, ${name}` : ""}`;
}

function showPicture(part, item) {
  const picture = element("picture");
  if (!item && !part?.shown) {
    picture.removeAttribute("src");
    delete picture.dataset.path;
    return;
  }
  setPicture(picture, item ? item.image : part.url, !item);
  if (part.shown) stage.style.setProperty("--ratio", part.shown.naturalWidth / part.shown.naturalHeight);
  picture.alt = item ? `${named(item)}, ${item.dataset}` : `Your picture${part.name ? `, ${part.name}` : ""}`;
}

// Small pictures are shown larger, all within the same height.
element("picture").addEventListener("load", ({ target }) => {
  if (target.naturalHeight) stage.style.setProperty("--ratio", target.naturalWidth / target.naturalHeight);
});

element("enlarge").addEventListener("click", () => {
  element("query").classList.add("enlarged");
  frame.focus({ preventScroll: true });
});

// --- Cropped -------------------------------------------------------------------------------------------------------

function showFrame() {
  const crop = shownPart?.crop || WHOLE;
  const cropped = !isWhole(crop);
  stage.classList.toggle("cropped", cropped);
  for (const [side, value] of [["left", crop.x], ["top", crop.y], ["width", crop.w], ["height", crop.h]]) frame.style[side] = `${value * 100}%`;
  frame.style.right = frame.style.bottom = "auto";
  const share = (value) => `${Math.round(value * 100)} %`;
  frame.setAttribute("aria-label", cropped
    ? `Crop: ${share(crop.w)} wide and ${share(crop.h)} high, ${share(crop.x)} from the left, ${share(crop.y)} from the top`
    : "Crop: the whole picture");
  element("whole").hidden = !cropped;
}

function setCrop({ x, y, w, h }, wait = null) {
  const part = shownPart;
  if (part?.kind !== "file" || !part.shown) return;
  w = between(w, LEAST, 1);
  h = between(h, LEAST, 1);
  part.crop = { x: between(x, 0, 1 - w), y: between(y, 0, 1 - h), w, h };
  showFrame();
  clearTimeout(delayed);
  if (wait !== null) delayed = setTimeout(() => { if (shownPart === part) cropChanged(); }, wait);
}

function point(event) {
  const box = element("picture").getBoundingClientRect();
  return { x: between((event.clientX - box.left) / box.width, 0, 1), y: between((event.clientY - box.top) / box.height, 0, 1) };
}

stage.addEventListener("pointerdown", (event) => {
  const part = shownPart;
  if (event.button || part?.kind !== "file" || !part.shown) return;
  const corner = event.target.dataset?.corner;
  const before = { ...part.crop };
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
  else if (moved) setCrop(shownPart.crop, 0);
}
stage.addEventListener("pointerup", release);
stage.addEventListener("pointercancel", release);

frame.addEventListener("keydown", (event) => {
  const part = shownPart;
  if (part?.kind !== "file" || event.ctrlKey || event.metaKey || event.altKey) return;
  const { x, y, w, h } = part.crop;
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
    setCrop(part.crop, 0);
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
