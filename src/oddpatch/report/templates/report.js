// The threshold moves with the slider, and the counts with it; the points are the test images.
const slider = document.getElementById("threshold"), line = document.getElementById("line");
const points = [...document.querySelectorAll("#points circle")];
const low = +slider.min, high = +slider.max;
function move() {
  const at = +slider.value, above = [0, 0], all = [0, 0];
  for (const point of points) {
    all[+point.dataset.label]++;
    above[+point.dataset.label] += +point.dataset.score > at;
  }
  for (const end of ["x1", "x2"]) line.setAttribute(end, 1000 * (at - low) / (high - low));
  document.getElementById("at").textContent = at.toPrecision(4);
  document.getElementById("found").textContent = `${above[1]} of ${all[1]}`;
  document.getElementById("alarms").textContent = `${above[0]} of ${all[0]}`;
}
slider.addEventListener("input", move);
move();
