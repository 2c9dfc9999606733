// Runs programs (fasttrain/sampling/playground/program.py) with the operators of kernels.c, and
// samples with them (fasttrain/sampling/solvers.py).

// wasm: bytes; weights: Float32Array; programs: by name. Returns evaluate(name, x, label, hot).
function createRuntime(wasm, weights, programs) {
  const size = Math.max(...Object.values(programs).map((program) => program.size));
  const stack = 4 * 65536; // the compiler's own data
  const bytes = stack + 4 * (weights.length + size) + 64;
  const memory = new WebAssembly.Memory({ initial: Math.ceil(bytes / 65536) });
  const imports = { memory, exp: Math.exp, sin: Math.sin, cos: Math.cos };
  const instance = new WebAssembly.Instance(new WebAssembly.Module(wasm), { env: imports });
  const kernels = instance.exports;
  const weightsAt = Math.ceil(kernels.heap() / 16) * 16;
  const activationsAt = weightsAt + Math.ceil(weights.length / 4) * 16;
  const values = new Float32Array(memory.buffer);
  values.set(weights, weightsAt / 4);

  const address = (x) => {
    if (typeof x === "number") return x;
    return (x[0] === "w" ? weightsAt : activationsAt) + 4 * Number(x.slice(1));
  };
  const ready = {};
  for (const [name, program] of Object.entries(programs)) {
    ready[name] = {
      inputs: program.inputs.map(address),
      output: address(program.output) / 4,
      code: program.code.map(([op, ...args]) => [kernels[op], args.map(address)]),
    };
  }
  return function evaluate(name, x, label, hot) {
    const { inputs, output, code } = ready[name];
    values.set(x, inputs[0] / 4);
    values[inputs[1] / 4] = label;
    if (hot) values.set(hot, inputs[2] / 4);
    for (const [kernel, args] of code) kernel(...args);
    return values.subarray(output, output + x.length);
  };
}

// D(x; t) = c_skip x + c_out F(c_in x; c_noise); level: [t, c_skip, c_out, c_in, c_noise].
function denoise(evaluate, name, x, [, skip, out, into, noise], hot) {
  const raw = evaluate(name, Float32Array.from(x, (value) => into * Math.fround(value)), noise, hot);
  return Float32Array.from(raw, (value, i) => skip * Math.fround(x[i]) + out * value);
}

// Images of a sampler, step by step: yields [evaluations so far, image]; the last is the result.
function* sample(evaluate, name, { kind, levels }, z, hot) {
  if (kind === "few-step") {
    let x = z.map((value) => value * levels[0][0]);
    let image = denoise(evaluate, name, x, levels[0], hot);
    yield [1, image];
    if (levels.length === 1) return;
    const share = levels[1][0] / levels[0][0];
    x = x.map((value, i) => image[i] + share * (value - image[i]));
    yield [2, denoise(evaluate, name, x, levels[1], hot)];
    return;
  }
  let x = Float64Array.from(z, (value) => value * levels[0][0]);
  let count = 0;
  for (let step = 0; step < levels.length; step++) {
    const t = levels[step][0], last = step === levels.length - 1;
    const image = denoise(evaluate, name, x, levels[step], hot);
    const slope = x.map((value, i) => (value - image[i]) / t);
    const dt = (last ? 0 : levels[step + 1][0]) - t;
    let next = x.map((value, i) => value + dt * slope[i]);
    count++;
    if (!last) {
      const there = levels[step + 1][0];
      const second = denoise(evaluate, name, next, levels[step + 1], hot);
      next = x.map((v, i) => v + (dt * (slope[i] + (next[i] - second[i]) / there)) / 2);
      count++;
    }
    x = next;
    yield [count, last ? Float32Array.from(x) : image];
  }
}

function oneHot(label, classes) {
  const hot = new Float32Array(classes);
  if (classes) hot[label] = 1;
  return hot;
}
