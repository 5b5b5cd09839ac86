// Thumbnail and name of a point: by pointer, touch, or the arrow keys once the map has the focus.
const map = document.getElementById("map"), tip = document.getElementById("tip");
const points = [...map.querySelectorAll("circle")];
const order = points.map((_, i) => i).sort((a, b) => points[a].cx.baseVal.value - points[b].cx.baseVal.value);
let chosen = -1;

function show(index) {
  if (chosen >= 0) points[chosen].classList.remove("chosen");
  chosen = index;
  if (index < 0) { tip.style.display = "none"; return; }
  const point = points[index], columns = Number(map.dataset.columns);
  point.classList.add("chosen");
  point.parentNode.append(point);  // above the others
  const picture = tip.firstElementChild, rows = Math.ceil(points.length / columns);
  picture.style.backgroundSize = `${columns * 96}px ${rows * 96}px`;
  picture.style.backgroundPosition = `-${index % columns * 96}px -${Math.floor(index / columns) * 96}px`;
  tip.lastElementChild.textContent = point.dataset.caption;
  tip.style.display = "block";
  const box = map.getBoundingClientRect(), place = point.getBoundingClientRect();
  const left = Math.min(place.right - box.left + 8, box.width - tip.offsetWidth - 4);
  const top = Math.min(place.bottom - box.top + 8, box.height - tip.offsetHeight - 4);
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function nearest(event) {
  let best = -1, least = 400;  // within 20 pixels
  points.forEach((point, index) => {
    const box = point.getBoundingClientRect();
    const x = box.left + box.width / 2 - event.clientX, y = box.top + box.height / 2 - event.clientY;
    if (x * x + y * y < least) { least = x * x + y * y; best = index; }
  });
  return best;
}

map.addEventListener("pointermove", event => show(nearest(event)));
map.addEventListener("pointerdown", event => show(nearest(event)));
map.addEventListener("pointerleave", () => show(-1));
map.addEventListener("blur", () => show(-1));
map.addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (event.key === "Escape") show(-1);
  if (!step) return;
  event.preventDefault();
  const place = chosen < 0 ? (step > 0 ? -1 : 0) : order.indexOf(chosen);
  show(order[(place + step + order.length) % order.length]);
});
