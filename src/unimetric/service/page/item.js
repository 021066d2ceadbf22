// One item, opened: its whole picture, what is known of it, and what can be done with it.

import { linkable, pictureUrl, setPicture } from "./access.js";
import { button, copyText, element, explained, make, named, similarity } from "./dom.js";
import { Problem, ask } from "./service.js";

const box = () => element("item");
let shown = null; // the picture of the opened item: its request, and the address that the browser keeps it under

export function isOpen() {
  return box().open;
}

export function showItem(item, ways) {
  const dialog = box();
  const picture = make("img", "whole");
  setPicture(picture, item.image);
  picture.alt = named(item);
  const note = make("figcaption", "soft");
  const figure = make("figure");
  figure.append(picture, note);
  const facts = make("div", "facts");
  const title = make("h2", "", named(item));
  title.id = "item-heading";
  facts.append(title, make("p", "soft", item.dataset));
  if (item.score !== undefined) facts.append(...measured(item));
  const open = make("a", "button", "Open picture");
  facts.append(details(item), actions(item, open, ways));
  const close = button("Close", "button close", () => dialog.close());
  const content = make("div", "content");
  content.append(figure, facts);
  dialog.replaceChildren(close, content);
  if (!dialog.open) dialog.showModal();
  enlarge(item, picture, open, note);
}

// Replaces the stored picture by the one of the item's file, where the service can read it.
async function enlarge(item, picture, open, note) {
  forget();
  const own = { request: new AbortController(), url: null };
  shown = own;
  open.href = item.image;
  pictureUrl(item.image).then((url) => { if (!own.url) open.href = url; }, () => {}); // without an answer, the link is as good as the picture
  const path = `v1/items/${item.id}/original`;
  try {
    const content = await ask(path, { signal: own.request.signal }, (response) => response.blob());
    if (shown !== own) return;
    own.url = URL.createObjectURL(content);
    setPicture(picture, own.url, true);
    open.href = linkable(path, own.url);
  } catch (error) {
    if (shown !== own) return;
    const why = error instanceof Problem && error.code === "no_original" ? error.message : "the larger one could not be loaded";
    note.textContent = `A small copy: ${why}.`;
  }
}

function forget() {
  shown?.request.abort();
  if (shown?.url) URL.revokeObjectURL(shown.url);
  shown = null;
}

box().addEventListener("close", forget);

function measured(match) {
  const word = match.strength;
  const number = make("p", "soft");
  number.append(`Similarity ${similarity(match.score)}. ${explained(match)}`);
  return word ? [make("p", `verdict ${word}`, word === "identical" ? "Identical picture" : `A ${word} match`), number] : [number];
}

function details(item) {
  const list = make("dl");
  list.append(make("dt", "", "path"), make("dd", "path", item.path));
  for (const [name, value] of Object.entries(item.metadata || {})) {
    if (value !== null) list.append(make("dt", "", name), make("dd", "", String(value)));
  }
  return list;
}

function actions(item, open, { moreLike, addable, add }) {
  const row = make("p", "buttons");
  const copied = make("span", "soft");
  copied.setAttribute("role", "status");
  open.target = "_blank";
  open.rel = "noopener";
  row.append(
    button("More like this", "button primary", () => { moreLike(item); }),
    ...(addable(item) ? [button("Add to the search", "button", () => { add(item); })] : []),
    button("Copy path", "button", async () => { copied.textContent = await copyText(item.path, box().querySelector(".path")); }),
    open,
    copied,
  );
  return row;
}
