// Cards of items, and the answer to a search.

import { setPicture } from "./access.js";
import { breakable, button, counted, element, head, make, named, number, say, similarity } from "./dom.js";

export const STEP = 24; // cards that are shown at a time

const LEVELS = { identical: 4, strong: 3, possible: 2, weak: 1 };

function card(item, open) {
  const row = make("li", "card");
  row.dataset.id = item.id;
  const view = make("span", "view waiting");
  const image = make("img");
  image.alt = "";
  image.loading = "lazy";
  image.decoding = "async";
  setPicture(image, item.image);
  view.append(image);
  const words = make("span", "words");
  words.append(breakable(make("span", "label"), named(item)), " ", make("span", "dataset", item.dataset));
  if (item.score !== undefined) words.append(" ", measure(item));
  image.addEventListener("load", () => view.classList.remove("waiting"), { once: true });
  image.addEventListener("error", () => view.classList.replace("waiting", "failed"), { once: true });
  const whole = button(null, "open", () => open(item));
  whole.title = item.path;
  whole.setAttribute("aria-haspopup", "dialog");
  whole.append(view, words);
  row.append(whole);
  return row;
}

// --- Folded results ------------------------------------------------------------------------------------------------

// Matches, each with those folded into it: copies of its picture, or the others of its class.
export function arranged(matches, { byClass }) {
  const entries = [];
  const classes = new Map();
  for (const match of matches) {
    const key = byClass && match.label ? JSON.stringify([match.dataset, match.label]) : null;
    const first = key && classes.get(key);
    if (first) {
      first.others.push(match);
      continue;
    }
    const entry = { match, others: [], words: key ? (count) => `${number(count)} of this class` : null };
    if (key) classes.set(key, entry);
    entries.push(entry);
  }
  const copiesOf = (match) => match.copies || [];
  return entries.map(({ match, others, words }) => (others.length
    ? { match, others: [...copiesOf(match), ...others.flatMap((other) => [other, ...copiesOf(other)])], words }
    : { match, others: copiesOf(match), words: (count) => `${number(count)} copies` }));
}

function folded({ match, others, words }, open) {
  const row = card(match, open);
  if (!others.length) return row;
  let members = [];
  const more = button(words(others.length + 1), "fold", () => {
    const unfold = !members.length;
    for (const member of members) member.remove();
    members = unfold ? others.map((other) => card(other, open)) : [];
    for (const member of members) member.classList.add("member");
    row.after(...members);
    more.setAttribute("aria-expanded", String(unfold));
  });
  more.setAttribute("aria-expanded", "false");
  row.append(more);
  row.classList.add("stack");
  return row;
}

// --- While waiting -------------------------------------------------------------------------------------------------

export function showSkeletons() {
  if (document.querySelector(".card, .skeleton")) return;
  const empty = () => {
    const row = make("li", "skeleton");
    row.setAttribute("aria-hidden", "true");
    row.append(make("span", "view waiting"), make("span", "line"), make("span", "line short"));
    return row;
  };
  element("results").replaceChildren(...Array.from({ length: 8 }, empty));
}

export function removeSkeletons() {
  for (const row of document.querySelectorAll(".skeleton")) row.remove();
}

// --- Similarity ----------------------------------------------------------------------------------------------------

function measure(match) {
  const word = match.strength;
  const line = make("span", `measure ${word || ""}`);
  if (!word) {
    line.textContent = `similarity ${similarity(match.score)}`;
    return line;
  }
  const level = make("span", "level");
  level.setAttribute("aria-hidden", "true");
  for (let step = 1; step <= 4; step += 1) level.append(make("span", step <= LEVELS[word] ? "on" : ""));
  line.append(make("span", "word", word), level);
  return line;
}

export function clear() {
  for (const id of ["results", "weak"]) element(id).replaceChildren();
  element("weak-heading").hidden = true;
  element("more").hidden = true;
}

// Adds the cards of some items, and returns the first.
export function showItems(items, open) {
  const added = items.map((item) => card(item, open));
  element("results").append(...added);
  return added[0] || null;
}

// Adds the cards up to `count` that are not there yet, and returns the first new one.
export function showMatches(entries, count, open) {
  const known = new Set([...document.querySelectorAll(".card:not(.member)")].map((row) => row.dataset.id));
  const added = entries.slice(0, count).filter(({ match }) => !known.has(match.id)).map((entry) => {
    const row = folded(entry, open);
    element(entry.match.is_match === false ? "weak" : "results").append(row);
    return row;
  });
  element("weak-heading").hidden = !element("weak").children.length;
  return added[0] || null;
}

// `most` is the number of items that are sorted at most, and `partly` that of images that are indexed so far, or null.
export function describe({ matches, no_match: none, threshold }, { asked, place, order, most, partly }) {
  const right = matches.filter((match) => match.is_match !== false);
  const good = right.length;
  const classes = new Set(right.map(({ dataset, label }) => JSON.stringify([dataset, label]))).size;
  const first = order.sort ? `By ${order.sort}, of the ${number(most)} most similar.` : order.byClass ? "The most similar of each class." : "The most similar first.";
  element("weak-heading").textContent = none ? "The nearest" : "Less alike";
  const so = partly === null ? "" : ` ${counted(partly, "picture is", "pictures are")} indexed so far.`;
  if (!matches.length) {
    head(`Nothing is in ${place}`);
    say(`There are no items to compare with.${so}`);
  } else if (none) {
    head("No confident match");
    say(`Nothing in ${place} is ${threshold === null ? "more likely right than wrong" : "as similar as a match"}.${so}`);
  } else if (none === null) {
    head("Most similar");
    say(`${first} This catalogue was not calibrated, so nothing is called a match.${so}`);
  } else {
    const of = order.byClass ? ` in ${counted(classes, "class", "classes")}` : "";
    head(good < asked ? `${counted(good, "match", "matches")}${of}` : `${number(good)} or more matches${of}`);
    say(`${good === matches.length ? first : `${first.slice(0, -1)}; weaker ones are below.`}${so}`);
  }
}
