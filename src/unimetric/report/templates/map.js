"use strict";
// Print folded sections in full.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
// Without this script, each point still has its words as a title.
const map = document.getElementById("map");
if (map) {
  const words = document.getElementById("map-words");
  const points = Array.from(map.querySelectorAll("use"), (element) => {
    const title = element.querySelector("title");
    const text = title ? title.textContent : "";
    if (title) title.remove();
    return { element, text, x: Number(element.getAttribute("x")), y: Number(element.getAttribute("y")) };
  });
  let shown = null;
  const show = (event) => {
    const box = map.getBoundingClientRect();
    const view = map.viewBox.baseVal;
    const x = ((event.clientX - box.left) * view.width) / box.width;
    const y = ((event.clientY - box.top) * view.height) / box.height;
    let nearest = null;
    let best = 12 * 12;
    for (const point of points) {
      const distance = (point.x - x) ** 2 + (point.y - y) ** 2;
      if (distance < best) [nearest, best] = [point, distance];
    }
    if (nearest === shown) return;
    if (shown) shown.element.classList.remove("on");
    if (nearest) {
      nearest.element.classList.add("on");
      words.textContent = nearest.text;
    }
    shown = nearest;
  };
  map.addEventListener("pointermove", show);
  map.addEventListener("pointerdown", show);
  words.hidden = false;
}
