// Names for landmarks that the theme leaves without one of their own, and tables that scroll by keyboard.
const named = [["[data-md-component=search]", "Search this site"], [".md-search__options", "Search options"]];
for (const [selector, label] of named) document.querySelector(selector)?.setAttribute("aria-label", label);
for (const nav of document.querySelectorAll(".md-nav[aria-labelledby]")) {
  const section = document.getElementById(nav.getAttribute("aria-labelledby"))?.textContent.trim();
  nav.removeAttribute("aria-labelledby");
  nav.setAttribute("aria-label", `${section || "This page"}, level ${nav.dataset.mdLevel}`);
}
// The theme wraps tables and adds buttons to code once the page is loaded.
new MutationObserver(() => {
  for (const part of document.querySelectorAll(".md-code__nav:not([role])")) part.setAttribute("role", "none");
  for (const part of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) part.tabIndex = 0;
}).observe(document.body, { childList: true, subtree: true });

// The search fetches its index, which browsers allow over HTTP only; the theme hides it then.
if (location.protocol === "file:") {
  document.querySelector(".md-header__button[for=__search]")?.remove();
  const note = document.createElement("p");
  note.className = "site-note";
  note.textContent = "The search of these pages needs a server: run python -m http.server in their folder.";
  document.querySelector(".md-content__inner")?.prepend(note);
}
