// What the user does: time, which hypotheses, colours, a point, what is kept.

const element = (id) => document.getElementById(id);
const motion = new Motion(JSON.parse(element("data").textContent));
const scene = new Scene(element("space"), motion), film = new Film(element("video"), motion), fan = new Fan(element("bands"), motion);
const state = { s: 0, playing: false, show: "all", colour: "hypothesis", trails: true, frustum: true, picked: -1, kept: new Set(motion.seeds.map((_, k) => k)) };
const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255);
const SEEN = [0.44, 0.83, 0.76], HIDDEN = [1, 0.62, 0.35];
let pathsAreOld = true, frameShown = -1;

function chosen() {
  if (state.show === "mean") return [-1];
  const kept = [...state.kept].sort((a, b) => a - b);
  if (state.show === "all") return kept;
  if (state.show === "representatives") return motion.clusters.representatives;
  return [Number(state.show)];
}

// The largest spread and speed that nine of ten points stay below: the ends of the scale.
const limits = (() => {
  const spread = Array.from(motion.spread).sort((a, b) => a - b), speed = [];
  for (let n = 0; n < motion.N; n++) for (let s = 0; s < motion.S - 1; s += motion.perFrame) speed.push(motion.speed(-1, n, s));
  speed.sort((a, b) => a - b);
  const at = (v) => v[Math.floor(0.95 * (v.length - 1))] || 1e-9;
  return { spread: at(spread), speed: at(speed) };
})();

function colourOf(k, n, s) {
  switch (state.colour) {
    case "point": return motion.ramp(motion.N > 1 ? n / (motion.N - 1) : 0.5);
    case "spread": return motion.ramp(motion.spread[n * motion.S + Math.round(s)] / limits.spread);
    case "visibility": return motion.seen(n, s) ? SEEN : HIDDEN;
    case "speed": return motion.ramp(motion.speed(k, n, s) / limits.speed);
    default: return k < 0 ? rgb(variable("--text")) : motion.colours.subarray(3 * k, 3 * k + 3);
  }
}

function dots(which) {
  const out = new Float32Array(which.length * motion.N * 8), x = [0, 0, 0];
  let i = 0;
  for (const k of which) for (let n = 0; n < motion.N; n++) {
    motion.place(k, n, state.s, x);
    const colour = colourOf(k, n, state.s), own = state.picked < 0 || n === state.picked;
    out.set([...x, ...colour, own ? 0.95 : 0.6, n === state.picked ? 11 : which.length > 4 ? 4 : 7], 8 * i++);
  }
  return out;
}

function frustum(t) {
  if (!state.frustum) return null;
  const only = chosen(), c = motion.camera(only.length === 1 ? only[0] : -1, t), [fx, fy, cx, cy] = motion.intrinsics, [H, W] = motion.size;
  const depth = 0.45 * Math.max(motion.radius, 1e-6);
  const back = (p) => [0, 1, 2].map((a) => [0, 1, 2].reduce((sum, r) => sum + c[4 * r + a] * (p[r] - c[4 * r + 3]), 0));
  const corner = (x, y) => back([(x - cx) / fx * depth, (y - cy) / fy * depth, depth]);
  return [back([0, 0, 0]), corner(0, 0), corner(W, 0), corner(W, H), corner(0, H)];
}

function draw() {
  const which = chosen(), t = Math.round(state.s / motion.perFrame);
  if (pathsAreOld) { scene.setPaths(which, colourOf); pathsAreOld = false; }
  if (film.images[t] && t !== frameShown && film.images[t].complete) { scene.setImage(film.images[t]); frameShown = t; }
  scene.draw({ now: state.s, dots: dots(which), trails: state.trails, frustum: frustum(t), picked: state.picked,
    ground: rgb(variable("--ground")), ink: rgb(variable("--faint")) });
  film.draw(t, which, colourOf, state.picked);
  fan.draw(state.picked, state.kept.size ? [...state.kept] : [], state.s, { band: SEEN, hidden: "rgba(255,158,90,.16)", text: variable("--text"), faint: variable("--faint") });
  const seconds = motion.seconds, share = state.s / motion.perFrame, low = Math.min(motion.T - 1, Math.floor(share)), high = Math.min(motion.T - 1, low + 1);
  const now = seconds[low] + (share - low) * (seconds[high] - seconds[low]);
  element("clock").textContent = `${now.toFixed(2)} s · frame ${t + 1} / ${motion.T}`;
  element("time").value = Math.round(1000 * state.s / Math.max(1, motion.S - 1));
}

let waiting = false;
function redraw() { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } }

function legend() {
  const bar = (from, to, colours) => `<div class="bar" style="background:linear-gradient(90deg,${colours.join(",")})"></div><div class="ends"><span>${from}</span><span>${to}</span></div>`;
  const scale = [0, 0.25, 0.5, 0.75, 1].map((q) => css([...motion.ramp(q)])), unit = motion.units === "m" ? "m" : "median depths";
  const order = motion.seeds.map((_, k) => k).sort((a, b) => motion.colours[3 * a + 2] - motion.colours[3 * b + 2]);
  element("legend").innerHTML = {
    hypothesis: () => `hypotheses, by where they put the scene${bar("nearer", "farther", order.map((k) => css([...motion.colours.subarray(3 * k, 3 * k + 3)])))}`,
    point: () => `points, in the order they were chosen${bar("first", "last", scale)}`,
    spread: () => `spread over the hypotheses, ${unit}${bar("0", limits.spread.toPrecision(2), scale)}`,
    speed: () => `speed, ${unit} a second${bar("0", limits.speed.toPrecision(2), scale)}`,
    visibility: () => `<span class="key" style="background:${css(SEEN)}"></span>seen<span class="key" style="background:${css(HIDDEN)}"></span>hidden`,
  }[state.colour]();
}

function pick(n) {
  state.picked = n;
  const told = element("fanTitle");
  if (n < 0) told.textContent = "click a point to see its fan";
  else {
    let seen = 0;
    for (let t = 0; t < motion.T; t++) seen += motion.seen(n, t * motion.perFrame);
    told.textContent = `point ${n}: median, 50 % and 90 % of ${state.kept.size}; seen in ${seen} of ${motion.T} frames`;
  }
  redraw();
}

function keepChanged() {
  element("kept").textContent = `${state.kept.size} of ${motion.K} kept`;
  // A choice of none is none: what reads it needs a hypothesis.
  element("save").disabled = state.kept.size === 0;
  for (const box of element("list").querySelectorAll("input")) box.checked = state.kept.has(Number(box.value));
  pathsAreOld = true; pick(state.picked);
}

function setup() {
  document.title = motion.title ? `${motion.title} – diffusion4d` : "diffusion4d";
  element("title").textContent = motion.title || "diffusion4d";
  element("about").textContent = `${motion.K} sampled motion${motion.K > 1 ? "s" : ""} of ${motion.N} points · ${motion.T} frames · ${motion.frame} frame`;
  const options = [["all", "all that are kept"], ["mean", "their mean"]];
  if (motion.clusters) {
    const told = motion.clusters.weights.map((w) => `${Math.round(100 * w)} %`).join(", ");
    options.push(["representatives", `one for each of ${motion.clusters.weights.length} cluster${motion.clusters.weights.length > 1 ? "s" : ""} (${told})`]);
  }
  motion.rank.forEach((k, i) => options.push([String(k), `hypothesis ${k}${i === 0 ? ", the most central" : ""}`]));
  for (const [value, text] of options) element("show").add(new Option(text, value));
  for (let k = 0; k < motion.K; k++) {
    const label = document.createElement("label"), box = document.createElement("input"), mark = document.createElement("i");
    box.type = "checkbox"; box.value = k; box.checked = true; mark.style.background = css([...motion.colours.subarray(3 * k, 3 * k + 3)]);
    label.append(box, mark, document.createTextNode(`${k}${motion.clusters ? ` · ${String.fromCharCode(65 + motion.clusters.labels[k])}` : ""}`));
    label.title = `seed ${motion.seeds[k]}${motion.fit[k] === null ? "" : `, reprojection ${motion.fit[k]} px`}`;
    box.addEventListener("change", () => { state.kept[box.checked ? "add" : "delete"](k); keepChanged(); });
    element("list").append(label);
  }
  if (!motion.clusters) element("why").textContent = motion.whyNoClusters;
  keepChanged(); legend();
}

function hitTest(event) {
  const box = element("space").getBoundingClientRect(), view = scene.view(), x = [0, 0, 0];
  let best = -1, least = 12;
  for (const k of chosen()) for (let n = 0; n < motion.N; n++) {
    const p = scene.onScreen(motion.place(k, n, state.s, x), view);
    const d = p ? Math.hypot(p[0] - event.clientX + box.left, p[1] - event.clientY + box.top) : Infinity;
    if (d < least) { least = d; best = n; }
  }
  return best;
}

function listen() {
  const space = element("space");
  let drag = null;
  space.addEventListener("pointerdown", (e) => { drag = { x: e.clientX, y: e.clientY, moved: 0, shift: e.shiftKey || e.button === 2 }; space.setPointerCapture(e.pointerId); });
  space.addEventListener("pointermove", (e) => {
    if (!drag) return;
    const dx = e.clientX - drag.x, dy = e.clientY - drag.y;
    drag.moved += Math.abs(dx) + Math.abs(dy); drag.x = e.clientX; drag.y = e.clientY;
    if (drag.moved > 3) { scene[drag.shift ? "shift" : "turn"](dx, dy); redraw(); }
  });
  // A click beside all points lets go of the one that is picked.
  space.addEventListener("pointerup", (e) => { if (drag && drag.moved <= 3) pick(hitTest(e)); drag = null; });
  space.addEventListener("contextmenu", (e) => e.preventDefault());
  space.addEventListener("dblclick", () => { scene.home(); redraw(); });
  space.addEventListener("wheel", (e) => { e.preventDefault(); scene.zoom(e.deltaY * 0.001); redraw(); }, { passive: false });
  element("video").addEventListener("click", (e) => { const box = element("video").getBoundingClientRect(); pick(film.nearest(e.clientX - box.left, e.clientY - box.top, Math.round(state.s / motion.perFrame))); });
  element("time").addEventListener("input", (e) => { state.s = e.target.value / 1000 * (motion.S - 1); play(false); redraw(); });
  element("play").addEventListener("click", () => play(!state.playing));
  for (const id of ["show", "colour"]) element(id).addEventListener("change", (e) => { state[id] = e.target.value; pathsAreOld = true; legend(); redraw(); });
  for (const id of ["trails", "frustum"]) element(id).addEventListener("change", (e) => { state[id] = e.target.checked; redraw(); });
  element("all").addEventListener("click", () => { state.kept = new Set(motion.seeds.map((_, k) => k)); keepChanged(); });
  element("none").addEventListener("click", () => { state.kept = new Set(); keepChanged(); });
  element("save").addEventListener("click", save);
  window.addEventListener("resize", redraw);
  window.matchMedia("(prefers-color-scheme: light)").addEventListener("change", () => { pathsAreOld = true; redraw(); });
  window.addEventListener("keydown", (e) => {
    if (["INPUT", "SELECT", "BUTTON"].includes(e.target.tagName) && e.key === " ") return;
    if (e.key === " ") { e.preventDefault(); play(!state.playing); }
    if (e.target.tagName === "INPUT") return;
    if (e.key === "ArrowRight" || e.key === "ArrowLeft") { state.s = Math.max(0, Math.min(motion.S - 1, state.s + (e.key === "ArrowRight" ? 1 : -1) * motion.perFrame)); redraw(); }
  });
}

function play(on) {
  if (state.playing === on) return;
  state.playing = on;
  element("play").textContent = on ? "❚❚" : "▶";
  let last = performance.now();
  const length = Math.max(1e-3, motion.seconds[motion.T - 1] - motion.seconds[0]);
  const step = (time) => {
    if (!state.playing) return;
    state.s += (time - last) / 1000 / length * (motion.S - 1); last = time;
    if (state.s > motion.S - 1) state.s = 0;
    draw(); requestAnimationFrame(step);
  };
  if (on) requestAnimationFrame(step);
}

async function save() {
  const choice = { kept: [...state.kept].sort((a, b) => a - b), rejected: motion.seeds.map((_, k) => k).filter((k) => !state.kept.has(k)) };
  const told = element("saved");
  if (!motion.canSave) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(choice, null, 2)], { type: "application/json" }));
    link.download = "choice.json"; link.click(); URL.revokeObjectURL(link.href);
    told.textContent = "choice.json handed to the browser";
    return;
  }
  try {
    const answer = await fetch("choice", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(choice) });
    told.textContent = await answer.text();
  } catch (error) { told.textContent = `not saved: ${error}`; }
}

// What hypotheses differ about most while it moves unseen is what there is to see: its fan is open from the start.
function mostOpen() {
  let best = 0, most = -1;
  for (let n = 0; n < motion.N; n++) {
    let sum = 0, size = 0;
    for (let s = 0; s < motion.S; s += motion.perFrame) { sum += (motion.seen(n, s) ? 0.1 : 1) * motion.spread[n * motion.S + s]; size += motion.speed(-1, n, s); }
    if (sum * size > most) { most = sum * size; best = n; }
  }
  return best;
}

setup(); listen(); if (motion.K > 1) pick(mostOpen()); draw();
film.ready().then(() => { frameShown = -1; draw(); window.viewer = { state, motion, scene, draw, pick, ready: true }; });
