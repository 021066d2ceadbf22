"use strict";

// The page's state, its address and history, and the ways into a search.

import { counted, element, head, say } from "./dom.js";
import { showChips, showFilters, showOrder } from "./filters.js";
import { showItem } from "./item.js";
import { follow, indexedSoFar, isIndexing } from "./progress.js";
import { MOST, WHOLE, loaded, onChange, showQuery } from "./query.js";
import { answerTo } from "./request.js";
import { STEP, arranged, clear, describe, removeSkeletons, showItems, showMatches, showSkeletons } from "./results.js";
import { asProblem, ask, canTryAgain, sentence } from "./service.js";

const FETCHED = 4 * STEP; // matches that are asked for at first; more are asked for when these have been shown

const EXAMPLES = 12;
const ORDER = Object.freeze({ sort: "", descending: false, byClass: false, copies: null });
const NARROW = "(max-width: 55.99rem)"; // as in style.css
const PATIENCE = 150; // milliseconds without an answer before skeletons are shown

let limits = { max_upload_bytes: 1e7, max_pixels: 5e7, max_k: 100 };
let catalogues = [];
let columns = [];
let current = blank();
let running = null; // the request under way, to be cancelled by the next one
const visits = new Map(); // states of the entries of the browser's history
let visit = 0;

function blank() {
  return { query: null, datasets: new Set(), where: "", order: ORDER, asked: FETCHED, shown: STEP, answer: null };
}

// --- Address -------------------------------------------------------------------------------------------------------

function address(open = null) {
  const query = new URLSearchParams();
  for (const part of current.query?.parts || []) if (part.kind === "item") query.append("item", part.id);
  for (const name of current.datasets) query.append("dataset", name);
  if (current.where) query.set("where", current.where);
  const { sort, descending, byClass, copies } = current.order;
  if (sort) query.set("sort", sort);
  if (sort && descending) query.set("order", "descending");
  if (byClass) query.set("group", "class");
  if (copies !== null) query.set("copies", copies ? "folded" : "all");
  if (open) query.set("open", open);
  return String(query) ? `?${query}` : "./";
}

function fromAddress() {
  const query = new URLSearchParams(location.search);
  const parts = query.getAll("item").slice(0, MOST).map((id) => ({ kind: "item", id, item: null }));
  const copies = { folded: true, all: false }[query.get("copies")] ?? null;
  return {
    ...blank(),
    query: parts.length ? { parts, at: 0 } : null,
    datasets: new Set(query.getAll("dataset")),
    where: query.get("where") || "",
    order: { sort: query.get("sort") || "", descending: query.get("order") === "descending", byClass: query.get("group") === "class", copies },
  };
}

const opened = () => new URLSearchParams(location.search).get("open");

// A new entry in the browser's history, so that Back shows what was there.
function go(query, replace = false) {
  current = { ...blank(), query, datasets: new Set(current.datasets), where: current.where, order: current.order };
  visit += 1;
  visits.set(visit, current);
  const entry = [{ visit, file: Boolean(query?.parts.some((part) => part.kind === "file")) }, "", address()];
  if (replace) history.replaceState(...entry);
  else history.pushState(...entry);
  showQuery(query);
  showFiltersOf(current);
  if (matchMedia(NARROW).matches) element("filters").open = false; // the results come first
  window.scrollTo({ top: 0 });
}

function come(state) {
  running?.abort();
  running = null;
  element("answers").setAttribute("aria-busy", "false");
  const before = current;
  const kept = visits.get(state?.visit);
  current = kept || fromAddress();
  visit = state?.visit ?? 0;
  visits.set(visit, current);
  const same = current === before;
  if (!same) {
    complain("");
    showQuery(current.query?.parts.some((part) => part.kind === "item" && !part.item) ? null : current.query);
    showFiltersOf(current);
    clear();
  }
  if (opened()) openAddressed();
  else element("item").close();
  if (same) return;
  if (current.answer) showAnswer();
  else search({ focus: true, lost: !kept && Boolean(state?.file) });
}

window.addEventListener("popstate", (event) => come(event.state));

// --- Results -------------------------------------------------------------------------------------------------------

function complain(text, retry = null) {
  const box = element("trouble");
  box.replaceChildren();
  box.classList.toggle("trouble", Boolean(text));
  if (!text) return;
  const words = document.createElement("p");
  words.textContent = text;
  box.append(words);
  if (!retry) return;
  const again = document.createElement("button");
  again.type = "button";
  again.className = "button";
  again.textContent = "Try again";
  again.addEventListener("click", retry);
  box.append(again);
}

function place() {
  const [first, ...others] = current.datasets;
  const name = first === undefined ? "the catalogue" : others.length ? "these catalogues" : first.length <= 40 ? first : "this catalogue";
  return current.where ? `${name} with these filters` : name;
}

function showAnswer() {
  clear();
  const { answer, asked, order } = current;
  describe(answer, { asked, place: place(), order, most: limits.max_k, partly: isIndexing() ? indexedSoFar() : null });
  showMatches(arranged(answer.matches, order), current.shown, open);
  showMoreButton();
}

function showMoreButton() {
  const { answer, shown, asked } = current;
  const all = answer.matches.length < asked || asked >= limits.max_k;
  element("more").hidden = all && shown >= arranged(answer.matches, current.order).length;
}

element("more").addEventListener("click", async () => {
  const state = current;
  if (!state.query) {
    try {
      (await browse(state))?.querySelector("button").focus();
    } catch (error) {
      complain(sentence(asProblem(error), [], limits), () => { complain(""); element("more").click(); });
    }
    return;
  }
  state.shown += STEP;
  const entries = () => arranged(state.answer.matches, state.order);
  if (state.shown > entries().length && state.answer.matches.length >= state.asked && state.asked < limits.max_k) {
    state.asked = limits.max_k;
    await search({ keep: true });
    if (current !== state) return;
    // More results may belong to the classes that are shown.
    if (state.order.byClass) clear();
  }
  const before = document.querySelectorAll(".card:not(.member)").length;
  const first = showMatches(entries(), state.shown, open);
  showMoreButton();
  const added = before ? first : document.querySelectorAll(".card")[state.shown - STEP];
  (added || element("more")).querySelector("button")?.focus();
});

// --- One item ------------------------------------------------------------------------------------------------------

function open(item) {
  history.pushState({ ...history.state, opened: true }, "", address(item.id));
  showItem(item, ways);
}

async function openAddressed() {
  const id = opened();
  const known = current.answer?.matches.find((match) => match.id === id);
  try {
    showItem(known || await ask(`v1/items/${encodeURIComponent(id)}`), ways);
  } catch (error) {
    history.replaceState(history.state, "", address());
    complain(sentence(asProblem(error), [], limits));
  }
}

element("item").addEventListener("close", () => {
  if (!opened()) return;
  if (history.state?.opened) history.back();
  else history.replaceState(history.state, "", address());
});

element("item").addEventListener("click", ({ target, currentTarget }) => {
  if (target === currentTarget) currentTarget.close(); // the backdrop
});

// Searches on by an item, alone or together with the pictures there are.
function searchItem(item, before = []) {
  const ownEntry = Boolean(history.state?.opened); // which the new query takes over
  go({ parts: [...before, { kind: "item", id: item.id, item }], at: before.length }, ownEntry);
  element("item").close();
  search({ focus: true });
}

const ways = {
  moreLike: (item) => searchItem(item),
  addable: ({ id }) => current.query && current.query.parts.length < MOST && !current.query.parts.some((part) => part.id === id),
  add: (item) => searchItem(item, current.query.parts),
};

// --- Searching -----------------------------------------------------------------------------------------------------

async function search({ focus = false, keep = false, lost = false } = {}) {
  const state = current;
  running?.abort();
  const controller = new AbortController();
  running = controller;
  element("answers").setAttribute("aria-busy", "true");
  complain("");
  if (!keep) say(state.query ? "Searching…" : "");
  const waiting = setTimeout(showSkeletons, PATIENCE);
  try {
    if (!state.query) {
      await showStart(state, controller.signal, lost);
    } else {
      const answer = await answerTo(state, limits, controller.signal, () => { if (current === state) showQuery(state.query); });
      if (running !== controller) return;
      state.answer = answer;
      if (!keep) showAnswer();
    }
    if (lost && state.query && running === controller) complain("Your own picture was not kept. Add it again to search by it as well.");
    if (focus && running === controller) element("heading").focus({ preventScroll: true });
  } catch (error) {
    if (running !== controller) return;
    const problem = asProblem(error);
    const cards = document.querySelector(".card");
    removeSkeletons();
    if (!cards) head("No results");
    say(cards && state.query ? "These are still the results from before." : "");
    complain(sentence(problem, namesOf(state.query), limits), canTryAgain(problem) ? () => search({ focus: true }) : null);
  } finally {
    clearTimeout(waiting);
    if (running === controller) {
      running = null;
      element("answers").setAttribute("aria-busy", "false");
    }
  }
}

async function showStart(state, signal, lost) {
  const any = await browse(state, { signal, fresh: true });
  if (current !== state) return;
  const { where, order } = state;
  if (!any && isIndexing()) {
    head("Your pictures are being indexed");
    say("The first ones can be searched in a moment.");
  } else if (!any) {
    head(where ? "Nothing fits the filters" : state.datasets.size ? `Nothing is in ${place()}` : "The catalogue is empty");
    say(where ? "Change the filters, or clear them." : "Add images with: unimetric index MODEL FOLDER --db DB");
  } else {
    head(order.sort ? `By ${order.sort}` : "Or start from one of these");
    say(lost ? "Your picture was not kept. Choose it again to search." : where || state.datasets.size ? `Searches are limited to ${place()}.` : "");
  }
}

// Adds items of the catalogue: some examples, or all that fit the filters in their order.
async function browse(state, { signal, fresh = false } = {}) {
  const { where, order, datasets } = state;
  const offset = fresh ? 0 : document.querySelectorAll("#results .card").length;
  const n = where || order.sort ? STEP : EXAMPLES;
  const query = new URLSearchParams({ n: String(n), offset: String(offset) });
  for (const name of datasets) query.append("dataset", name);
  if (where) query.set("where", where);
  if (order.sort) query.set("sort", order.sort);
  if (order.sort && order.descending) query.set("descending", "true");
  const { items } = await ask(`v1/items?${query}`, { signal });
  if (current !== state) return null;
  if (fresh) clear();
  element("more").hidden = items.length < n;
  return showItems(items, open);
}

const namesOf = (query) => (query?.parts || []).filter((part) => part.kind === "file").map((part) => part.name);

function again(state) {
  Object.assign(state, { answer: null, asked: FETCHED, shown: STEP });
  history.replaceState(history.state, "", address());
  search();
}

function showFiltersOf(state) {
  showChips(catalogues, state.datasets, () => again(state));
  showFilters(columns, state.where, (where) => {
    if (where === state.where) return;
    state.where = where;
    again(state);
  });
  showOrderOf(state);
}

function showOrderOf(state) {
  showOrder(columns, state.order, limits.group_copies, (change) => {
    state.order = { ...state.order, ...change };
    showOrderOf(state);
    if (!("byClass" in change)) {
      again(state);
      return;
    }
    state.shown = STEP;
    history.replaceState(history.state, "", address());
    if (state.answer) showAnswer();
  });
}

// --- Ways in -------------------------------------------------------------------------------------------------------

async function searchFiles(files, before = []) {
  const parts = await Promise.all([...files].slice(0, MOST - before.length).map(async (file) => {
    const url = URL.createObjectURL(file);
    return { kind: "file", file, name: file.name || "", url, shown: file.size ? await loaded(url) : null, crop: { ...WHOLE } };
  }));
  go({ parts: [...before, ...parts], at: before.length });
  await search();
  if (files.length > parts.length) complain(`A search takes ${MOST} pictures at most; the others were left out.`);
}

onChange(() => search(), (place) => {
  const parts = current.query.parts.filter((_, other) => other !== place);
  go({ parts, at: Math.min(current.query.at, parts.length - 1) });
  element("heading").focus({ preventScroll: true });
  search();
});

for (const id of ["file", "photo", "more-files"]) {
  element(id).addEventListener("change", ({ target }) => {
    const files = [...target.files];
    if (files.length) searchFiles(files, id === "more-files" ? current.query?.parts : []);
    target.value = ""; // so that the same file can be chosen again
  });
}

document.addEventListener("paste", (event) => {
  if (event.target.closest?.("input")) return;
  const files = event.clipboardData?.files || [];
  if (files.length) searchFiles(files);
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
  else searchFiles(files);
});

element("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (!current.query) return;
  go(null);
  search();
});

// --- Start ---------------------------------------------------------------------------------------------------------

async function describeCatalogues() {
  limits = await ask("v1/datasets");
  catalogues = limits.datasets;
  if (!columns.length) columns = Object.entries(limits.columns).map(([name, kind]) => ({ name, kind }));
  const images = counted(limits.items, "image", "images");
  element("size").textContent = `${images} in ${catalogues.length === 1 ? catalogues[0].name : `${catalogues.length} catalogues`}`;
}

// Takes a moment in a large database, so the page does not wait for it.
async function describeColumns() {
  try {
    ({ columns } = await ask("v1/columns"));
  } catch (error) {
    console.warn("The filters have no choices:", asProblem(error).message);
    return;
  }
  if (element("filters").contains(document.activeElement)) return; // its fields are being used
  showFiltersOf(current);
}

async function start() {
  const waiting = setTimeout(showSkeletons, PATIENCE);
  try {
    await describeCatalogues();
  } catch (error) {
    head("The catalogue cannot be shown");
    say("");
    removeSkeletons();
    complain(sentence(asProblem(error), [], limits), () => { complain(""); start(); });
    return;
  } finally {
    clearTimeout(waiting);
  }
  describeColumns();
  follow(onIndexed);
  if (visits.size) {
    showFiltersOf(current); // a picture was chosen before all this had come
    return;
  }
  visit = history.state?.visit ?? 0;
  history.replaceState({ ...history.state, visit, opened: false }, "");
  come(history.state);
}

// More images of a folder can be found. What is shown stays, but a start page is filled.
async function onIndexed(working) {
  try {
    await describeCatalogues();
  } catch {
    return; // the next search reports what is wrong
  }
  if (!working) describeColumns();
  if (!element("chips").contains(document.activeElement)) showChips(catalogues, current.datasets, () => again(current));
  const cards = document.querySelectorAll(".card").length;
  if (!current.query && !running && cards < EXAMPLES) search();
}

document.body.classList.add("start");
start();
