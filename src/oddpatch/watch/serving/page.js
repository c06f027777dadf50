"use strict";
// Asks for the state once a second and shows it. All text is set as text: nothing of it is read as HTML.
const PERIOD = 1000;
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], {hour12: false});
const number = (value) => (value == null ? "–" : value.toLocaleString("en", {maximumSignificantDigits: 4}));
let missed = 0;
let shown = "";

function show(element, text, kind) {
  element.textContent = text;
  if (kind !== undefined) element.className = `pill ${kind}`;
}

function make(parent, name, attributes = {}, text = "") {
  const element = name in {svg: 0, line: 0, text: 0, polyline: 0, circle: 0, title: 0}
    ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== "") element.textContent = text;
  parent.append(element);
  return element;
}

function tiles(state) {
  const seconds = (value) => (value == null ? "–" : value < 1 ? `${Math.round(1000 * value)} ms` : `${value.toFixed(1)} s`);
  const rate = (value) => (value == null ? "–" : `${value.toFixed(1)}/s`);
  const values = [
    ["accepted", number(state.verdicts.accept), "accept"],
    ["warned of", number(state.verdicts.warn), "warn"],
    ["rejected", number(state.verdicts.reject), "reject"],
    ["failed", number(state.verdicts.failed), "failed"],
    ["frames judged", rate(state.rates.judged)],
    ["delay, 95 %", seconds(state.delays.p95)],
    ["dropped", number(state.dropped)],
    ["reconnects", number(state.reconnects)],
  ];
  at("tiles").replaceChildren();
  for (const [name, value, kind] of values) {
    const tile = make(at("tiles"), "div", {class: "tile"});
    make(tile, "b", kind ? {class: kind} : {}, value);
    make(tile, "span", {}, name);
  }
}

function chart(state) {
  const svg = at("chart");
  const width = svg.clientWidth, height = svg.clientHeight;
  const points = state.points.filter((point) => point[1] !== null);
  const limits = Object.entries(state.thresholds);
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  at("limits").replaceChildren();
  for (const [verdict, value] of limits) make(at("limits"), "span", {class: verdict}, `${verdict} above ${number(value)}`);
  if (!points.length) return;
  const scores = points.map((point) => point[1]), reject = state.thresholds.reject;
  const step = nice(Math.max(...scores, ...limits.map((limit) => limit[1])) - Math.min(0, ...scores), reject);
  const low = Math.floor(Math.min(0, ...scores) / step) * step, high = low + 4 * step;
  const left = 44, right = width - 6, top = 8, bottom = height - 20;
  const first = points[0][0], span = Math.max(points[points.length - 1][0] - first, 1);
  const x = (time) => left + ((right - left) * (time - first)) / span;
  const y = (score) => bottom - ((bottom - top) * (Math.min(score, high) - low)) / (high - low);
  for (let value = low; value < high + step / 2; value += step) {
    make(svg, "line", {class: "grid", x1: left, x2: right, y1: y(value), y2: y(value)});
    make(svg, "text", {x: left - 6, y: y(value) + 4, "text-anchor": "end"},
      (value > high - step / 2 && Math.max(...scores) > high ? "≥" : "") + number(value));
  }
  for (const [where, anchor] of [[0, "start"], [1, "end"]])
    make(svg, "text", {x: where ? right : left, y: height - 4, "text-anchor": anchor}, clock(first + span * where));
  make(svg, "polyline", {class: "trace", points: points.map(([time, score]) => `${x(time)},${y(score)}`).join(" ")});
  for (const [time, score, verdict] of points) {
    if (verdict === "accept") continue;
    const dot = make(svg, "circle", {class: verdict, cx: x(time), cy: y(score), r: 3.5});
    make(dot, "title", {}, `${clock(time)}  ${number(score)}  ${verdict}`);
  }
  for (const [verdict, value] of limits)
    make(svg, "line", {class: `limit ${verdict}`, x1: left, x2: right, y1: y(value), y2: y(value)});
}

// A quarter of the height of the chart, 1, 2 or 5 times a power of ten. Scores beyond three times the threshold are
// drawn at the upper edge: what matters is how near to the thresholds the others are.
function nice(range, reject) {
  const wanted = Math.min(range, reject > 0 ? 3 * reject : range) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(wanted));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= wanted * 0.999);
}

const score = (frame) => (frame.error ? "not inspected" : `score ${number(frame.score)}`);

function newest(frame) {
  if (!frame) return;
  show(at("verdict"), frame.verdict, frame.verdict);
  show(at("caption"), `${clock(frame.time)} · frame ${frame.number} · ${frame.error || score(frame)}`);
  at("picture").hidden = !frame.picture;
  at("nothing").hidden = frame.picture;
  if (frame.picture) {
    at("picture").src = `/frames/${frame.id}.jpg`;
    at("picture").alt = `Frame ${frame.number} with its anomaly map: ${frame.verdict}`;
  } else show(at("nothing"), frame.error || "No picture");
}

function alarms(frames) {
  const now = frames.map((frame) => frame.id).join();
  if (now === shown) return;
  shown = now;
  at("none").hidden = frames.length > 0;
  at("alarms").replaceChildren();
  for (const frame of frames) {
    const button = make(make(at("alarms"), "li"), "button", {type: "button"});
    const screen = make(button, "div", {class: "screen"}, frame.picture ? "" : frame.error || "no picture");
    if (frame.picture) make(screen, "img", {src: `/frames/${frame.id}.jpg`, alt: ""});
    const about = make(button, "div", {class: "about"});
    make(about, "b", {class: frame.verdict}, frame.verdict);
    make(about, "span", {class: "faint"}, frame.error ? clock(frame.time) : `${number(frame.score)} · ${clock(frame.time)}`);
    button.addEventListener("click", () => {
      at("larger").hidden = !frame.picture;
      if (frame.picture) at("larger").src = `/frames/${frame.id}.jpg`;
      show(at("told"), `${frame.verdict} · ${clock(frame.time)} · frame ${frame.number} · ${frame.error || score(frame)} · ${frame.id}`);
      at("large").showModal();
    });
  }
}

function sinks(counts) {
  const rows = Object.entries(counts);
  at("sinks").hidden = rows.length === 0;
  at("counts").replaceChildren();
  for (const [name, values] of rows) {
    const row = make(at("counts"), "tr");
    make(row, "th", {scope: "row"}, name);
    make(row, "td", {}, Object.entries(values).map(([what, count]) => `${number(count)} ${what.replace("_", " ")}`).join(", "));
  }
}

function trouble(text) {
  at("trouble").hidden = !text;
  show(at("trouble"), text || "");
}

async function refresh() {
  try {
    const answer = await fetch("/state", {signal: AbortSignal.timeout(5000)});
    if (answer.status === 401) return location.assign("/");
    if (!answer.ok) throw new Error(`${answer.status}`);
    const state = await answer.json();
    missed = 0;
    const silent = state.last_frame === null ? null : state.now - state.last_frame;
    show(at("source"), state.source);
    show(at("state"), state.connection, state.connection);
    const age = silent === null ? "" : ` · last frame ${Math.round(silent)} s ago`;
    trouble(state.trouble && state.trouble + age);
    at("drift").hidden = !state.drift.length;
    at("drift").textContent = state.drift.join("; ");
    document.title = `${state.trouble ? "! " : ""}oddpatch · ${state.source}`;
    tiles(state);
    chart(state);
    newest(state.newest);
    alarms(state.alarms);
    sinks(state.sinks);
  } catch (error) {
    if (++missed < 3) return;
    show(at("state"), "no contact", "lost");
    trouble("The watch does not answer: what is shown is old");
  }
}

async function run() {
  if (location.search) history.replaceState(null, "", location.pathname); // the token is in the cookie now
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((resolve) => setTimeout(resolve, PERIOD));
  }
}
run();
