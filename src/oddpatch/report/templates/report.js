// The threshold moves with the slider, and the counts with it; the points are the test images.
const slider = document.getElementById("threshold"), line = document.getElementById("line");
const points = [...document.querySelectorAll("#points circle")];
function move() {
  const at = +slider.value, low = +slider.min, high = +slider.max, above = [0, 0], all = [0, 0];
  for (const point of points) {
    all[+point.dataset.label]++;
    above[+point.dataset.label] += +point.dataset.score > at;
  }
  for (const end of ["x1", "x2"]) line.setAttribute(end, 1000 * (at - low) / (high - low));
  document.getElementById("at").textContent = at.toPrecision(4);
  document.getElementById("found").textContent = `${above[1]} of ${all[1]}`;
  document.getElementById("alarms").textContent = `${above[0]} of ${all[0]}`;
}
if (slider) {
  slider.addEventListener("input", move);
  move();
}
// The value of the map under the pointer, and a ring at its place on every picture of the image.
for (const pictures of document.querySelectorAll("[data-map]")) {
  const of = pictures.dataset, values = atob(of.map), told = pictures.querySelector("output");
  const read = [...pictures.querySelectorAll("img.read")], rings = read.map(() => document.createElement("i"));
  function leave() {
    told.textContent = "";
    for (const ring of rings) ring.remove();
  }
  function show(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const x = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 0.9999);
    const y = Math.min(Math.max((event.clientY - box.top) / box.height, 0), 0.9999);
    const step = values.charCodeAt(Math.floor(y * of.rows) * of.columns + Math.floor(x * of.columns));
    const value = +of.low + step / 255 * (of.high - of.low);
    told.textContent = `${value.toPrecision(3)} at ${Math.floor(x * of.width)}, ${Math.floor(y * of.height)}`;
    rings.forEach((ring, place) => {
      ring.style.left = `${100 * x}%`;
      ring.style.top = `${100 * y}%`;
      read[place].after(ring);
    });
  }
  for (const img of read) {
    for (const kind of ["pointermove", "pointerdown"]) img.addEventListener(kind, show);
    img.addEventListener("pointerleave", leave);
  }
}
