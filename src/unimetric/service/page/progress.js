// Progress of the indexing of a served folder: a bar, the files that cannot be read, and advice at the end.

import { button, copyText, counted, element, make, number } from "./dom.js";
import { ask } from "./service.js";

const WORKING = ["waiting", "reading", "indexing"];
const EVERY = 1000; // milliseconds between two questions
const HIDDEN = "progress-hidden";

let last = null;
let hidden = false;

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });
export const isIndexing = () => WORKING.includes(last?.indexing?.phase);
export const indexedSoFar = () => last?.items ?? 0;

// Asks again until the indexing has ended; `changed` is called at first, when more images can be found, and at the end.
export async function follow(changed) {
  for (;;) {
    let status = null;
    try {
      status = await ask("v1/status");
    } catch {
      // The next search reports what is wrong; the service may come back.
    }
    if (status ? !status.indexing : !last) return;
    if (!status) {
      await pause(5 * EVERY);
      continue;
    }
    const [before, was] = [last?.items, isIndexing()];
    last = status;
    show(status.indexing);
    if (before === undefined ? isIndexing() : before !== status.items || was !== isIndexing()) changed(isIndexing());
    if (!isIndexing()) return;
    await pause(document.hidden ? 5 * EVERY : EVERY);
  }
}

export function timeLeft(seconds) {
  if (seconds < 90) return `about ${Math.max(5, Math.round(seconds / 5) * 5)} s left`;
  if (seconds < 5400) return `about ${Math.round(seconds / 60)} minutes left`;
  return `about ${Math.round(seconds / 3600)} hours left`;
}

function words({ phase, done, total, seconds_left: left, problem, folder }) {
  if (phase === "waiting") return "The model is being loaded; then your pictures are indexed.";
  if (phase === "reading") return `Looking for pictures in ${folder}`;
  if (phase === "failed") return `The pictures could not all be indexed: ${problem}. Start the service again to continue.`;
  if (phase === "stopped") return "Indexing was stopped. The next start of the service continues it.";
  if (phase === "done") return `The indexing has ended: ${counted(done, "picture", "pictures")}.`;
  const time = left === null ? "" : `, ${timeLeft(left)}`;
  return `Indexing: ${number(done)} of ${counted(total, "picture", "pictures")}${time}. You can search already.`;
}

function show(indexing) {
  const { phase, done, total, train_command: command } = indexing;
  const remarkable = phase !== "done" || indexing.skipped_total || command;
  element("progress").hidden = !remarkable || (hidden || isHidden(phase));
  element("progress").dataset.phase = phase;
  element("progress-words").textContent = words(indexing);
  // A screen reader hears of each phase once, not of every picture.
  if (element("progress-said").dataset.phase !== phase) {
    element("progress-said").dataset.phase = phase;
    element("progress-said").textContent = words(indexing);
  }
  const bar = element("progress-bar");
  bar.hidden = !isIndexing();
  if (total) Object.assign(bar, { max: total, value: done });
  else bar.removeAttribute("value");
  showSkipped(indexing);
  showAdvice(command, phase);
  element("progress-hide").hidden = isIndexing();
}

function showSkipped({ skipped, skipped_total: total }) {
  const box = element("skipped");
  box.hidden = !total;
  if (!total || box.dataset.total === String(total)) return;
  box.dataset.total = String(total);
  box.querySelector("summary").textContent = counted(total, "file cannot be read", "files cannot be read");
  const rows = skipped.map(({ path, reason }) => {
    const row = make("li");
    row.append(make("b", "", path), ` ${reason}`);
    return row;
  });
  if (skipped.length < total) rows.push(make("li", "", `and ${number(total - skipped.length)} more, which the service's log names`));
  box.querySelector("ul").replaceChildren(...rows);
}

function showAdvice(command, phase) {
  const box = element("advice");
  box.hidden = !command || phase !== "done";
  if (box.hidden || box.childNodes.length) return;
  const copied = make("span", "soft");
  copied.setAttribute("role", "status");
  const shown = make("code", "", command);
  box.append("For better answers, train on these pictures: ", shown, " ", button("Copy", "button small", async () => {
    copied.textContent = await copyText(command, shown);
  }), " ", copied);
}

function isHidden(phase) {
  try {
    return phase === "done" && sessionStorage.getItem(HIDDEN) === "yes";
  } catch {
    return false; // no storage, as in a private window
  }
}

element("progress-hide").addEventListener("click", () => {
  hidden = true;
  element("progress").hidden = true;
  element("heading").focus({ preventScroll: true });
  try {
    sessionStorage.setItem(HIDDEN, "yes");
  } catch {
    // Then it is hidden until the page is loaded again.
  }
});
