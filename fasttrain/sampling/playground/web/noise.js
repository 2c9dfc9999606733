// Latents by seed, as fasttrain's own (kernels/fasttrain_kernels/counter_random.py): Philox 4x32-10
// over (block of four numbers, 0, seed), then Box and Muller in float32. Within 1e-6 of PyTorch's,
// whose logarithm, sine and cosine round differently in the last bit.

const round = Math.fround;
const ANGLE = round(2 * Math.PI * 2 ** -32);

function high(a, b) {
  const low = (a & 0xffff) * (b & 0xffff);
  const one = (a >>> 16) * (b & 0xffff) + Math.floor(low / 65536);
  const two = (a & 0xffff) * (b >>> 16) + (one % 65536);
  return ((a >>> 16) * (b >>> 16) + Math.floor(one / 65536) + Math.floor(two / 65536)) >>> 0;
}

function philox(block, stream, low, top) {
  let [c0, c1, c2, c3, k0, k1] = [block, stream, low, top, 0, 0];
  for (let i = 0; i < 10; i++) {
    const h0 = high(c0, 0xd2511f53), l0 = Math.imul(c0, 0xd2511f53) >>> 0;
    const h1 = high(c2, 0xcd9e8d57), l1 = Math.imul(c2, 0xcd9e8d57) >>> 0;
    [c0, c1, c2, c3] = [(h1 ^ c1 ^ k0) >>> 0, l1, (h0 ^ c3 ^ k1) >>> 0, l0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

// Float32Array of `count` standard normals of a seed from 0 to 2^53 - 1.
function latents(seed, count) {
  const out = new Float32Array(Math.ceil(count / 4) * 4);
  const low = seed % 2 ** 32, top = Math.floor(seed / 2 ** 32);
  for (let block = 0; 4 * block < count; block++) {
    const words = philox(block, 0, low, top);
    for (let j = 0; j < 4; j += 2) {
      const uniform = round(round(round(words[j]) * 2 ** -32) + 2 ** -33);
      const radius = round(Math.sqrt(round(round(Math.log(uniform)) * -2)));
      const angle = round(round(words[j + 1]) * ANGLE);
      out[4 * block + j] = radius * round(Math.cos(angle));
      out[4 * block + j + 1] = radius * round(Math.sin(angle));
    }
  }
  return out.subarray(0, count);
}

function dot(x, y) {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * y[i];
  return sum;
}

// A fraction `at` of the way from x to y, along the arc between their directions.
function between(x, y, at) {
  if (at === 0) return x;
  const cosine = dot(x, y) / Math.sqrt(dot(x, x) * dot(y, y));
  const angle = Math.acos(Math.max(-1, Math.min(1, cosine)));
  const first = Math.sin((1 - at) * angle) / Math.sin(angle);
  const second = Math.sin(at * angle) / Math.sin(angle);
  return x.map((value, i) => first * value + second * y[i]);
}

// x turned by `right` and `up` radians towards two other latents.
function moved(x, right, up, [east, north]) {
  const turn = Math.hypot(right, up);
  if (turn === 0) return x;
  const stay = Math.cos(turn), go = Math.sin(turn) / turn;
  return x.map((value, i) => stay * value + go * (right * east[i] + up * north[i]));
}
