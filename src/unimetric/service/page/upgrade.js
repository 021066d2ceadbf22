// The progress of an upgrade of the catalogue to another model, in one line.

import { fetched } from "./access.js";
import { element, number } from "./dom.js";

const EVERY = 10_000; // milliseconds between two questions
const SELDOM = 60_000;

function words({ answers, embedded, rows }) {
  const share = rows ? Math.floor((100 * embedded) / rows) : 100;
  const found = answers === "old" ? "The old model answers meanwhile." : "Everything can be found meanwhile.";
  return `A new model is being introduced: ${share} % (${number(embedded)} of ${number(rows)} pictures). ${found}`;
}

async function follow() {
  let upgrade = null;
  try {
    const response = await fetched("v1/status");
    if (response.ok) upgrade = (await response.json()).upgrade;
  } catch {
    // The next search shows what is wrong; the service may come back.
  }
  element("upgrade").hidden = !upgrade;
  if (upgrade) element("upgrade").textContent = words(upgrade);
  setTimeout(follow, upgrade ? EVERY : SELDOM);
}

follow();
