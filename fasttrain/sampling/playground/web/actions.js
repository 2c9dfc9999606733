// What buttons, keys and the pointer do.

function forget() {
  for (const id of ["compared", "near"]) $(id).hidden = true;
}

async function compare() {
  const { seed, label, z } = chosen();
  const current = () => chosen().seed === seed && $("compared").dataset.job === job;
  const job = ($("compared").dataset.job = String(Math.random()));
  $("compare").disabled = true;
  $("compared").hidden = false;
  $("many-time").textContent = $("once-time").textContent = "…";
  draw($("once"), new Float32Array(area).fill(0));
  draw($("many"), new Float32Array(area).fill(0));
  const once = await alone({ name: "generator", z, label, repeat: 5 });
  if (current()) {
    draw($("once"), once.image);
    $("once-time").textContent = milliseconds(once.time);
  }
  const evaluations = about.samplers.teacher.evaluations;
  const step = (count, image) => {
    if (!current()) return;
    draw($("many"), image);
    $("many-time").textContent = `${count} of ${evaluations} evaluations`;
  };
  const many = await alone({ name: "teacher", z, label, step });
  $("compare").disabled = false;
  if (!current()) return;
  draw($("many"), many.image);
  $("many-time").textContent = milliseconds(many.time);
  $("ratio").textContent = `${(many.time / once.time).toFixed(0)} times as long`;
  say(`One step ${milliseconds(once.time)}, ${about.samplers.teacher.title} ${milliseconds(many.time)}`);
}
const milliseconds = (x) => (x < 1000 ? `${x.toFixed(x < 10 ? 1 : 0)} ms` : `${(x / 1000).toFixed(2)} s`);

async function nearest() {
  const image = tiles[state.chosen].slot.image;
  if (!image) return;
  $("nearest").disabled = true;
  say("Looking through the training images …", true);
  try {
    const answer = await fetch("nearest", { method: "POST", body: Uint8Array.from(image, byte) });
    if (!answer.ok) throw new Error(await answer.text());
    const { pixels, label, distance, count } = await answer.json();
    draw($("neighbour"), Float32Array.from(bytesOf(pixels), (x) => x / 127.5 - 1));
    const kind = label === null ? "" : `${nameOf(label)}, `;
    $("near-shown").textContent =
      `${kind}${distance.toFixed(1)} grey levels away (root mean square), of ${count.toLocaleString("en")} images`;
    $("near").hidden = false;
    say("Nearest training image: " + $("near-shown").textContent);
  } catch (error) {
    say(`No nearest image: ${error.message}`);
  }
  $("nearest").disabled = false;
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`Copied: ${what}`);
}

function save() {
  const { seed, label } = chosen();
  const link = document.createElement("a");
  link.download = `${[about.name, nameOf(label), seed].filter(Boolean).join("-")}.png`.replace(/[^\w.-]+/g, "_");
  link.href = $("large").toDataURL("image/png");
  link.click();
}

function drags(element, radians, types) {
  let from = null;
  element.addEventListener("pointerdown", (event) => {
    if (event.button || !types.includes(event.pointerType)) return;
    from = { x: event.clientX, y: event.clientY, right: state.right, up: state.up, far: false };
  });
  element.addEventListener("pointermove", (event) => {
    if (!from) return;
    const x = event.clientX - from.x, y = event.clientY - from.y;
    if (!from.far && Math.hypot(x, y) < 4) return;
    if (!from.far) element.setPointerCapture(event.pointerId);
    from.far = true;
    const scale = radians(element);
    move(from.right + x * scale, from.up - y * scale);
  });
  for (const end of ["pointerup", "pointercancel"])
    element.addEventListener(end, () => {
      element.dataset.dragged = from?.far ? "yes" : "";
      from = null;
    });
  element.addEventListener("click", (event) => {
    if (element.dataset.dragged) event.stopPropagation(); // the end of a drag is no choice
    element.dataset.dragged = "";
  }, true);
}

function keys() {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  $("pad").addEventListener("keydown", (event) => {
    if (event.key === "Home") move(0, 0);
    else if (step[event.key]) {
      const [x, y] = step[event.key], by = event.shiftKey ? 0.3 : 0.05;
      move(state.right + x * by, state.up + y * by);
    } else return;
    event.preventDefault();
  });
  $("grid").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const columns = getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
    const to = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (to) {
      const next = state.chosen + to;
      if (next >= 0 && next < TILES) choose(next, true);
      event.preventDefault();
    } else if (event.key === "a" || event.key === "b") end(event.key);
    else if (event.key === "c") copy(command(chosen()), "the command");
  });
}

function listen() {
  $("first").onchange = (event) => begin(event.target.value);
  $("first").oninput = (event) => {
    clearTimeout(reseed);
    reseed = setTimeout(() => event.target.value !== "" && begin(event.target.value), 400);
  };
  $("back").onclick = () => begin(state.first - TILES);
  $("on").onclick = () => begin(state.first + TILES);
  $("any").onclick = () => begin(Math.floor(Math.random() * 1e6));
  $("class").onchange = (event) => {
    state.label = Number(event.target.value);
    begin(state.first);
    nameStrip();
  };
  $("centre").onclick = () => move(0, 0);
  $("end-a").onclick = () => end("a");
  $("end-b").onclick = () => end("b");
  $("at").oninput = (event) => {
    state.at = Number(event.target.value) / 100;
    nameStrip();
    redraw([strip[STRIP]]);
  };
  $("copy").onclick = () => copy(command(chosen()), "the command");
  $("copy-strip").onclick = () => copy($("strip-command").textContent, "the command of the strip");
  $("share").onclick = () => copy(location.href, "the address of this view");
  $("save").onclick = save;
  $("compare").onclick = compare;
  $("nearest").onclick = nearest;
  $("theme").onclick = () => {
    const root = document.documentElement;
    const dark = getComputedStyle(root).colorScheme.includes("dark");
    root.dataset.theme = dark ? "light" : "dark";
  };
  drags($("grid"), (element) => 3 / element.clientWidth, ["mouse", "pen"]);
  drags($("pad"), (element) => 3 / element.clientWidth, ["mouse", "pen", "touch"]);
  $("pad").ondblclick = () => move(0, 0);
}

async function main() {
  recall();
  ["all in turn", ...classes].forEach((name, i) => $("class").add(new Option(name, i - 1)));
  $("class").value = String(state.label);
  $("class-field").hidden = $("class-row").hidden = !classes.length;
  $("compare").hidden = !about.samplers.teacher;
  $("nearest").hidden = !about.nearest;
  for (const id of ["large", "once", "many", "neighbour"]) $(id).width = $(id).height = about.size;
  makeTiles();
  makeStrip();
  slots = [...tiles.map((tile) => tile.slot), ...strip];
  listen();
  keys();
  begin(state.first);
  nameStrip();
  try {
    await pool.start(about, Math.min(about.workers, navigator.hardwareConcurrency || 2));
  } catch (error) {
    say(`This browser cannot run the model: ${error.message}`, true);
    document.body.dataset.state = "failed";
    return;
  }
  pool.work();
  say("Ready");
  document.body.dataset.state = "ready";
}

main();
