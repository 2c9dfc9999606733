// Runs the programs of exported pages under node, with the page's own code: no browser is needed.
//
//   node run_pages.js WEB jobs.json out.bin
//
// jobs.json: {"latents": [[seed, count], ...], "images": [{"page", "name", "seed", "label"}, ...]};
// out.bin: float32, one after the other.
"use strict";
const fs = require("fs");
const [web, jobs, out] = process.argv.slice(2);
const read = (name) => fs.readFileSync(`${web}/${name}`, "utf8");
let html = "";
const part = (id) => html.match(new RegExp(`<script type="[^"]*" id="${id}">([^]*?)</script>`))[1];
globalThis.document = { getElementById: (id) => ({ textContent: part(id) }) };
const names = "latents, between, moved, unpack, bytesOf, createRuntime, sample, oneHot";
const code = ["noise.js", "runtime.js", "pool.js"].map(read).join("\n");
const page = new Function(`"use strict";\n${code}\nreturn { ${names} };`)();

async function main() {
  const { latents, images } = JSON.parse(fs.readFileSync(jobs, "utf8"));
  const values = latents.map(([seed, count]) => page.latents(seed, count));
  const open = {};
  for (const { page: path, name, seed, label, to, at, turn } of images) {
    html = fs.readFileSync(path, "utf8");
    const about = JSON.parse(part("about"));
    open[path] ??= page.createRuntime(
      page.bytesOf(part("kernels")), await page.unpack(part("weights"), about.counts), about.programs);
    const count = about.channels * about.size ** 2;
    let z = page.latents(seed, count);
    if (at !== undefined) z = page.between(z, page.latents(to, count), at);
    if (turn) z = page.moved(z, ...turn, [page.latents(900001, count), page.latents(900002, count)]);
    const hot = page.oneHot(label, about.classes.length);
    let image = null;
    for ([, image] of page.sample(open[path], name, about.samplers[name], z, hot));
    values.push(image);
  }
  fs.writeFileSync(out, Buffer.concat(values.map((x) => Buffer.from(Float32Array.from(x).buffer))));
}
main();
