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

// The search fetches its index, which browsers allow over HTTP only.
if (location.protocol === "file:") {
  const field = document.querySelector("[data-md-component=search-query]");
  field.placeholder = "Search needs a server: python -m http.server";
  field.disabled = true;
}
