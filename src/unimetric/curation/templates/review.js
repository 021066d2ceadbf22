"use strict";
const cards = [...document.querySelectorAll("article")];
const store = document.body.dataset.audit;
const state = new Map();
let current = -1;

function remember() {
  try { localStorage.setItem(store, JSON.stringify(Object.fromEntries(state))); } catch { /* the file is the record */ }
}

function recall() {
  try { return Object.entries(JSON.parse(localStorage.getItem(store) || "{}")); } catch { return []; }
}

function decide(card, decision) {
  const number = card.dataset.number;
  if (decision && state.get(number) !== decision) state.set(number, decision); else state.delete(number);
  show(card);
  count();
  remember();
}

function show(card) {
  const decision = state.get(card.dataset.number);
  card.classList.toggle("accepted", decision === "accepted");
  card.classList.toggle("rejected", decision === "rejected");
  for (const button of card.querySelectorAll("button[data-decision]"))
    button.setAttribute("aria-pressed", String(button.dataset.decision === decision));
}

function count() {
  const values = [...state.values()];
  const accepted = values.filter((value) => value === "accepted").length;
  document.getElementById("count").textContent =
    `${accepted} accepted, ${values.length - accepted} rejected, ${cards.length - values.length} open`;
}

function visible() { return cards.filter((card) => !card.hidden); }

function go(step) {
  const seen = visible();
  if (!seen.length) return;
  const place = Math.min(Math.max(seen.indexOf(cards[current]) + step, 0), seen.length - 1);
  cards[current]?.classList.remove("current");
  current = cards.indexOf(seen[place]);
  cards[current].classList.add("current");
  cards[current].focus({ preventScroll: true });
  cards[current].scrollIntoView({ block: "center" });
}

function filter() {
  const kind = document.getElementById("kind").value;
  const open = document.getElementById("open").value;
  for (const card of cards) {
    const decision = state.get(card.dataset.number) || "open";
    card.hidden = (kind && card.dataset.kind !== kind) || (open && decision !== open);
  }
  for (const section of document.querySelectorAll("section"))
    section.hidden = ![...section.querySelectorAll("article")].some((card) => !card.hidden);
}

function save() {
  const of = (decision) => cards.map((card) => Number(card.dataset.number))
    .filter((number) => state.get(String(number)) === decision);
  const text = JSON.stringify({ accepted: of("accepted"), rejected: of("rejected") }, null, 2);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  URL.revokeObjectURL(link.href);
}

async function load(file) {
  const status = document.getElementById("count");
  try {
    const saved = JSON.parse(await file.text());
    state.clear();
    for (const decision of ["accepted", "rejected"])
      for (const number of saved[decision] || []) state.set(String(number), decision);
    cards.forEach(show);
    count();
    remember();
  } catch { status.textContent = "This file holds no decisions."; }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-decision]");
  if (button) decide(button.closest("article"), button.dataset.decision);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
  const keys = { j: () => go(1), k: () => go(-1), ArrowDown: () => go(1), ArrowUp: () => go(-1) };
  const decisions = { a: "accepted", r: "rejected", u: null };
  if (event.key in keys) keys[event.key]();
  else if (event.key in decisions && current >= 0) {
    const card = cards[current];
    if (state.get(card.dataset.number) === decisions[event.key]) return;
    decide(card, decisions[event.key]);
    if (decisions[event.key]) go(1);
  } else return;
  event.preventDefault();
});
document.getElementById("kind").addEventListener("change", filter);
document.getElementById("open").addEventListener("change", filter);
document.getElementById("save").addEventListener("click", save);
document.getElementById("load").addEventListener("change", (event) => event.target.files[0] && load(event.target.files[0]));
for (const [number, decision] of recall()) state.set(number, decision);
cards.forEach(show);
count();
