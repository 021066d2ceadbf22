// The search fetches its index, which browsers allow over HTTP only.
if (location.protocol === "file:") {
  const field = document.querySelector("[data-md-component=search-query]");
  field.placeholder = "Search needs a server: python -m http.server";
  field.disabled = true;
}
