// The page's state, and which image is to be drawn next.

const about = JSON.parse(part("about"));
const classes = about.classes;
const area = about.channels * about.size * about.size;
const TILES = Math.min(24, about.tiles);
const STRIP = 10;
const EAST = 900001, NORTH = 900002; // seeds of the directions that dragging turns towards
const LAST = Number.MAX_SAFE_INTEGER - TILES;

const $ = (id) => document.getElementById(id);
const state = { first: 0, label: -1, right: 0, up: 0, chosen: 0, a: null, b: null, at: 0.5 };
const memo = new Map();

function noiseOf(seed) {
  if (!memo.has(seed)) {
    if (memo.size > 500) memo.clear();
    memo.set(seed, latents(seed, area));
  }
  return memo.get(seed);
}
const labelOf = (seed) => (!classes.length ? 0 : state.label < 0 ? seed % classes.length : state.label);
const nameOf = (label) => classes[label] ?? "";
const titleOf = (seed, label) => (classes.length ? `seed ${seed}, ${nameOf(label)}` : `seed ${seed}`);
const here = (seed) =>
  moved(noiseOf(seed), state.right, state.up, [noiseOf(EAST), noiseOf(NORTH)]);

// A place for an image: drawn again whenever `wanted` is not what it shows.
class Slot {
  constructor(canvas, source, drawn = () => {}) {
    Object.assign(this, { canvas, source, drawn, wanted: 1, shown: 0, busy: false, image: null });
    canvas.width = canvas.height = about.size;
  }

  job() {
    const { z, label } = this.source();
    const version = this.wanted;
    this.busy = true;
    const done = (image, time) => {
      this.busy = false;
      this.shown = version;
      this.image = image;
      draw(this.canvas, image);
      this.drawn(image, time);
    };
    return { name: "generator", z, label, done };
  }
}

function draw(canvas, image) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(about.size, about.size);
  const plane = about.size * about.size;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++)
      pixels.data[4 * i + c] = byte(image[i + plane * (about.channels === 1 ? 0 : c)]);
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
}
const byte = (x) => Math.max(0, Math.min(255, Math.round((x + 1) * 127.5)));

let slots = []; // in order of importance when equally old
const waiting = []; // jobs that a click asked for, which run alone
const pool = new Pool((running) => {
  if (waiting.length) return running ? null : waiting.shift();
  if (pool.alone) return null;
  let best = null;
  for (const slot of slots)
    if (!slot.busy && slot.shown !== slot.wanted && (!best || slot.shown < best.shown)) best = slot;
  return best?.job();
});

// Run a job with no other beside it, so that its time is its own.
function alone(job) {
  return new Promise((resolve) => {
    pool.alone = true;
    const done = (image, time) => {
      pool.alone = waiting.length > 0;
      resolve({ image, time });
      pool.work();
    };
    waiting.push({ ...job, done });
    pool.work();
  });
}

let version = 1;
function redraw(which = slots) {
  version++;
  for (const slot of which) slot.wanted = version;
  pool.work();
}

const tiles = [];
function makeTiles() {
  for (let i = 0; i < TILES; i++) {
    const button = document.createElement("button");
    button.className = "tile";
    button.type = "button";
    button.tabIndex = i ? -1 : 0;
    const canvas = document.createElement("canvas");
    canvas.setAttribute("aria-hidden", "true");
    const caption = document.createElement("span");
    button.append(canvas, caption);
    button.onclick = () => choose(i);
    $("grid").append(button);
    const source = () => ({ z: here(state.first + i), label: labelOf(state.first + i) });
    tiles.push({ button, caption, slot: new Slot(canvas, source, () => i === state.chosen && detail()) });
  }
}

function nameTiles() {
  tiles.forEach(({ button, caption }, i) => {
    const seed = state.first + i, title = titleOf(seed, labelOf(seed));
    caption.textContent = seed;
    button.title = title;
    button.setAttribute("aria-label", title);
    button.setAttribute("aria-pressed", String(i === state.chosen));
    button.tabIndex = i === state.chosen ? 0 : -1;
  });
}

function choose(i, focus = false) {
  state.chosen = i;
  nameTiles();
  forget();
  detail();
  if (focus) tiles[i].button.focus();
  remember();
}

const chosen = () => {
  const seed = state.first + state.chosen;
  return { seed, label: labelOf(seed), z: here(seed) };
};

const model = () => quoted(about.name) + (about.checkpoint ? ` --checkpoint ${about.checkpoint}` : "");

function command({ seed, label }) {
  const kind = classes.length ? ` --class ${quoted(nameOf(label))}` : "";
  return `fasttrain sample ${model()} --seeds ${seed}${kind}`;
}
const quoted = (text) => (/^[\w.@%+=:,/-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function detail() {
  const { seed, label } = chosen();
  const image = tiles[state.chosen].slot.image;
  if (image) draw($("large"), image);
  $("large").setAttribute("aria-label", `Generated image: ${titleOf(seed, label)}`);
  $("seed-shown").textContent = seed;
  $("class-shown").textContent = nameOf(label);
  const off = state.right || state.up;
  $("moved").textContent = off ? `moved ${turned(state.right)}, ${turned(state.up)}` : "as sampled";
  write("command", command({ seed, label }));
  $("command-note").hidden = !off;
}
const turned = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);

let reseed = null;
function begin(first) {
  state.first = Math.max(0, Math.min(LAST, Math.floor(Number(first)) || 0));
  $("first").value = state.first;
  clearTimeout(reseed);
  nameTiles();
  forget();
  detail();
  redraw();
  remember();
}

function move(right, up) {
  const far = Math.hypot(right, up), most = 1.5;
  const scale = far > most ? most / far : 1;
  state.right = right * scale;
  state.up = up * scale;
  const knob = $("knob").style;
  knob.left = `${50 + (state.right / most) * 50}%`;
  knob.top = `${50 - (state.up / most) * 50}%`;
  $("pad").setAttribute("aria-valuetext", `right ${turned(state.right)}, up ${turned(state.up)}`);
  $("pad").setAttribute("aria-valuenow", state.right.toFixed(2));
  $("where").textContent = `${turned(state.right)}, ${turned(state.up)}`;
  forget();
  detail();
  redraw(tiles.map((tile) => tile.slot));
}

// The strip from one image to another.
const ends = () => [state.a ?? { seed: state.first, label: labelOf(state.first) },
  state.b ?? { seed: state.first + 1, label: labelOf(state.first + 1) }];
function along(at) {
  const [a, b] = ends();
  return { z: between(noiseOf(a.seed), noiseOf(b.seed), at), label: a.label };
}
let strip = [];
function makeStrip() {
  for (let k = 0; k < STRIP; k++) {
    const canvas = document.createElement("canvas");
    canvas.setAttribute("aria-hidden", "true");
    $("strip").append(canvas);
    strip.push(new Slot(canvas, () => along(k / (STRIP - 1))));
  }
  strip.push(new Slot($("blend"), () => along(state.at)));
}

function nameStrip() {
  const [a, b] = ends();
  $("a-shown").textContent = titleOf(a.seed, a.label);
  $("b-shown").textContent = `seed ${b.seed}`;
  const kind = classes.length ? ` --class ${quoted(nameOf(a.label))}` : "";
  const seeds = `${a.seed},${b.seed}`;
  write("strip-command", `fasttrain sample ${model()} --interpolate ${seeds}${kind} --out strip.png`);
  $("blend").setAttribute("aria-label", `${Math.round(100 * state.at)} % of the way`);
  $("at-shown").textContent = `${Math.round(100 * state.at)} %`;
}

function end(which) {
  const { seed, label } = chosen();
  const other = ends()[which === "a" ? 1 : 0];
  if (other.seed === seed) return say("Choose another image: both ends would be the same");
  [state.a, state.b] = ends();
  state[which] = { seed, label };
  nameStrip();
  redraw(strip);
  remember();
  say(`${which === "a" ? "Start" : "End"} of the strip: ${titleOf(seed, label)}`);
}

let fading = null;
function say(text, stays = false) {
  $("status").textContent = text;
  $("status").classList.add("seen");
  clearTimeout(fading);
  if (!stays) fading = setTimeout(() => $("status").classList.remove("seen"), 4000);
}

// A command whose words do not break at their dashes.
function write(id, text) {
  const words = text.split(" ").map((word) => Object.assign(document.createElement("span"), { textContent: word }));
  $(id).replaceChildren(...words.flatMap((word) => [word, " "]).slice(0, -1));
}

// The address keeps what is shown, so that a copied one shows the same.
function remember() {
  const words = { seed: state.first, chosen: state.chosen };
  if (state.label >= 0) words.class = state.label;
  if (state.a) Object.assign(words, { a: state.a.seed, b: state.b.seed, of: state.a.label });
  history.replaceState(null, "", `#${new URLSearchParams(words)}`);
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  const number = (name, most) => {
    const value = Number(words.get(name) ?? NaN);
    return Number.isInteger(value) && value >= 0 && value <= most ? value : null;
  };
  state.first = number("seed", LAST) ?? 0;
  state.chosen = number("chosen", TILES - 1) ?? 0;
  state.label = number("class", classes.length - 1) ?? -1;
  const [a, b] = [number("a", LAST), number("b", LAST)];
  const of = number("of", Math.max(0, classes.length - 1)) ?? 0;
  if (a !== null && b !== null && a !== b) [state.a, state.b] = [{ seed: a, label: of }, { seed: b, label: of }];
}
