// Cards of items, and the answer to a search.

import { setPicture } from "./access.js";
import { button, counted, element, head, make, named, number, say, similarity, strength } from "./dom.js";

export const STEP = 24; // cards that are shown at a time

const LEVELS = { identical: 4, strong: 3, possible: 2, weak: 1 };

function card(item, open) {
  const row = make("li", "card");
  row.dataset.id = item.id;
  const view = make("span", "view");
  const image = make("img");
  image.alt = "";
  image.loading = "lazy";
  image.decoding = "async";
  setPicture(image, item.image);
  view.append(image);
  const words = make("span", "words");
  words.append(make("span", "label", named(item)), " ", make("span", "dataset", item.dataset));
  if (item.score !== undefined) words.append(" ", measure(item));
  const whole = button(null, "", () => open(item));
  whole.title = item.path;
  whole.setAttribute("aria-haspopup", "dialog");
  whole.append(view, words);
  row.append(whole);
  return row;
}

function measure(match) {
  const word = strength(match);
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

export function showExamples(items, open) {
  clear();
  element("results").append(...items.map((item) => card(item, open)));
}

// Adds the cards up to `count` that are not there yet, and returns the first new one.
export function showMatches(matches, count, open) {
  const known = new Set([...document.querySelectorAll(".card")].map((row) => row.dataset.id));
  const added = matches.slice(0, count).filter((match) => !known.has(match.id)).map((match) => {
    const row = card(match, open);
    element(match.is_match === false ? "weak" : "results").append(row);
    return row;
  });
  element("weak-heading").hidden = !element("weak").children.length;
  return added[0] || null;
}

export function describe({ matches, no_match: none, threshold }, asked, place) {
  const good = matches.filter((match) => match.is_match !== false).length;
  element("weak-heading").textContent = none ? "The nearest" : "Less alike";
  if (!matches.length) {
    head(`Nothing is in ${place}`);
    say("There are no items to compare with.");
  } else if (none) {
    head("No confident match");
    say(`Nothing in ${place} is as similar as a match.`);
  } else if (threshold === null) {
    head("Most similar");
    say("The most similar first. This catalogue has no threshold for what is a match.");
  } else {
    head(good < asked ? counted(good, "match", "matches") : `${number(good)} or more matches`);
    say(good === matches.length ? "The most similar first." : "The most similar first; weaker ones are below.");
  }
}
