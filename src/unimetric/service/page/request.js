// From a query to the service's answer.

import { between } from "./dom.js";
import { redrawn, sendable } from "./query.js";
import { ask } from "./service.js";

const REPAIRABLE = ["animated_image", "not_an_image", "unreadable_image"];

// The items of a query that are known by their ids only are looked up first; `shown` is called when they have come.
export async function answerTo({ query, datasets, where, order, asked }, limits, signal, shown) {
  const items = query.parts.filter((part) => part.kind === "item");
  const unknown = items.filter((part) => !part.item);
  if (unknown.length) {
    await Promise.all(unknown.map(async (part) => { part.item = await ask(`v1/items/${encodeURIComponent(part.id)}`, { signal }); }));
    shown();
  }
  const filters = { k: between(asked, 1, limits.max_k) };
  if (datasets.size) filters.datasets = [...datasets];
  if (where) filters.where = where;
  if (order.copies !== null) filters.group_copies = order.copies;
  if (order.sort) Object.assign(filters, { sort: order.sort, descending: order.descending });
  const ids = items.map((part) => part.id);
  const files = query.parts.filter((part) => part.kind === "file");
  if (!files.length) {
    const named = ids.length === 1 ? { id: ids[0] } : { ids };
    const headers = { "Content-Type": "application/json" };
    return ask("v1/search", { method: "POST", headers, body: JSON.stringify({ ...named, ...filters }), signal });
  }
  // Together they have to be as small as one.
  const share = { ...limits, max_upload_bytes: Math.floor(limits.max_upload_bytes / files.length) };
  const images = await Promise.all(files.map((part) => sendable(part, share)));
  const send = (some) => ask("v1/search", { method: "POST", body: form(some, query.parts.length > 1 ? ids : null, filters), signal });
  try {
    return await send(images);
  } catch (error) {
    // A picture that the browser can show, it can also turn into a plain one.
    const untouched = files.some((part, place) => part.shown && images[place] === part.file);
    if (!REPAIRABLE.includes(error.code) || !untouched) throw error;
    return send(await Promise.all(files.map((part, place) => (part.shown ? redrawn(part, share) : images[place]))));
  }
}

// `ids` is null for a single picture.
function form(images, ids, { datasets = [], ...filters }) {
  const parts = new FormData();
  for (const image of images) parts.append(ids ? "images" : "image", image, "picture");
  for (const id of ids || []) parts.append("ids", id);
  for (const name of datasets) parts.append("datasets", name);
  for (const [name, value] of Object.entries(filters)) parts.append(name, String(value));
  return parts;
}
