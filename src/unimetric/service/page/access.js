// The access token that a service started with --read_token asks for. It is kept for this tab only.

import { button, make } from "./dom.js";

const KEY = "unimetric-token";
const pictures = new Map(); // blob URLs of pictures that were fetched with the token

let token = remembered();
let asking = null;

function remembered() {
  try {
    return sessionStorage.getItem(KEY) || "";
  } catch {
    return ""; // the browser stores nothing for this page
  }
}

function remember(value) {
  token = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // The token lives as long as the page.
  }
}

// Like fetch, with the token if there is one.
export function fetched(path, options = {}) {
  const headers = token ? { ...options.headers, Authorization: `Bearer ${token}` } : options.headers;
  return fetch(path, { credentials: "same-origin", ...options, headers });
}

// Like fetch, with the token; asks for one while the service refuses. The refusal is returned if nobody gives one.
export async function authorized(path, options = {}) {
  for (;;) {
    const used = token;
    const response = await fetched(path, options);
    if (response.status !== 401) return response;
    if (token === used) {
      asking ||= askForToken(Boolean(used)).finally(() => { asking = null; });
      if (!(await asking)) return response;
    }
  }
}

// The address of a picture for an <img>, which sends no Authorization header of its own.
export async function pictureUrl(path) {
  if (!token) return path;
  if (!pictures.has(path)) {
    const response = await authorized(path);
    if (!response.ok) return path;
    pictures.set(path, URL.createObjectURL(await response.blob()));
  }
  return pictures.get(path);
}

// The address for a link to what was fetched from a path: the path itself, unless that needs the token.
export const linkable = (path, fetched) => (token ? fetched : path);

// Shows a picture of the service, or an address of the page's own, in an <img>.
export async function setPicture(image, path, own = false) {
  image.dataset.path = path;
  if (own || !token) {
    image.src = path;
    return;
  }
  const url = await pictureUrl(path).catch(() => path); // without an answer, the image is shown as broken
  if (image.dataset.path === path) image.src = url;
}

function askForToken(refused) {
  return new Promise((resolve) => {
    const dialog = make("dialog", "token");
    dialog.setAttribute("aria-labelledby", "token-heading");
    const title = make("h2", "", "Access token");
    title.id = "token-heading";
    const form = make("form");
    form.method = "dialog";
    const label = make("label", "", refused ? "The service refused this token. Enter another:" : "This search is private. Enter its token:");
    const field = make("input");
    field.type = "password";
    field.required = true;
    field.autocomplete = "current-password";
    label.append(field);
    const row = make("p", "buttons");
    const send = make("button", "button primary", "Continue");
    row.append(send, button("Cancel", "button", () => dialog.close()));
    form.append(label, row);
    dialog.append(title, form);
    let given = false;
    form.addEventListener("submit", () => {
      given = Boolean(field.value.trim());
      if (given) remember(field.value.trim());
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(given);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
