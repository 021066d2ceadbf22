// One item, opened: its whole picture, what is known of it, and what can be done with it.

import { pictureUrl, setPicture } from "./access.js";
import { button, copyText, element, explained, make, named, similarity } from "./dom.js";

const box = () => element("item");

export function isOpen() {
  return box().open;
}

export function showItem(item, ways) {
  const dialog = box();
  const picture = make("img", "whole");
  setPicture(picture, item.image);
  picture.alt = named(item);
  const facts = make("div", "facts");
  const title = make("h2", "", named(item));
  title.id = "item-heading";
  facts.append(title, make("p", "soft", item.dataset));
  if (item.score !== undefined) facts.append(...measured(item));
  facts.append(details(item), actions(item, ways));
  const close = button("Close", "button close", () => dialog.close());
  const content = make("div", "content");
  content.append(picture, facts);
  dialog.replaceChildren(close, content);
  if (!dialog.open) dialog.showModal();
}

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

function actions(item, { moreLike, addable, add }) {
  const row = make("p", "buttons");
  const copied = make("span", "soft");
  copied.setAttribute("role", "status");
  const open = make("a", "button", "Open picture");
  pictureUrl(item.image).then((url) => { open.href = url; }, () => { open.href = item.image; });
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
