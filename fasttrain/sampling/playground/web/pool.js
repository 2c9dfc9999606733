// Weights out of the page, workers, and one job for each worker that has none.

const part = (id) => document.getElementById(id).textContent;
const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

// Float32Array from planes of bytes (memory.py): values of two bytes first, then of four.
function floats(bytes, [halves, wholes]) {
  const out = new Uint8Array(4 * (halves + wholes));
  let from = 0;
  for (const [start, count, kept] of [[0, halves, 2], [halves, wholes, 4]]) {
    for (let k = 0; k < kept; k++)
      for (let i = 0; i < count; i++) out[4 * (start + i) + 3 - k] = bytes[from++];
  }
  return new Float32Array(out.buffer);
}

async function unpack(base64, counts) {
  const gzip = new Blob([bytesOf(base64)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return floats(new Uint8Array(await new Response(gzip).arrayBuffer()), counts);
}

class Pool {
  // next: a function that returns the next job, {name, z, label, repeat, step, done}, or null.
  constructor(next) {
    this.next = next;
    this.idle = [];
    this.jobs = new Map();
    this.count = 0;
  }

  async start(about, workers) {
    const weights = await unpack(part("weights"), about.counts);
    const wasm = bytesOf(part("kernels"));
    const url = URL.createObjectURL(new Blob([part("worker")], { type: "text/javascript" }));
    const started = Array.from({ length: workers }, () => {
      const worker = new Worker(url);
      return new Promise((resolve, reject) => {
        worker.onerror = (event) => reject(new Error(event.message));
        worker.onmessage = ({ data }) => {
          if (data.ready) resolve(this.idle.push(worker));
          else this.report(worker, data);
        };
        worker.postMessage({ start: { wasm, weights, about } });
      });
    });
    await Promise.all(started);
  }

  report(worker, { id, done, count, image, time }) {
    const job = this.jobs.get(id);
    if (!done) {
      job.step?.(count, image);
      return;
    }
    this.jobs.delete(id);
    this.idle.push(worker);
    job.done(image, time);
    this.work();
  }

  work() {
    while (this.idle.length) {
      const job = this.next(this.jobs.size);
      if (!job) return;
      const id = this.count++;
      this.jobs.set(id, job);
      const { name, z, label, repeat = 1 } = job;
      this.idle.pop().postMessage({ id, name, z, label, repeat });
    }
  }
}
