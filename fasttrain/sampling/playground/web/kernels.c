// The operators of an exported U-Net on one image, float32, WebAssembly SIMD.
//
// Tensors are contiguous [channels, height, width]; strides are counted in floats. Build, with
// clang and wasm-ld (the result is committed, so that nobody needs them to use the page):
//
//   make playground-kernels
#include <wasm_simd128.h>

typedef v128_t v4;
#define EXPORT(name) __attribute__((export_name(#name)))

extern double exp(double), sin(double), cos(double);  // JavaScript's
extern unsigned char __heap_base;
EXPORT(heap) int heap(void) { return (int)&__heap_base; }

static inline v4 load(const float* p) { return wasm_v128_load(p); }
static inline v4 splat(float x) { return wasm_f32x4_splat(x); }
static inline v4 mul(v4 a, v4 b) { return wasm_f32x4_mul(a, b); }
static inline v4 add(v4 a, v4 b) { return wasm_f32x4_add(a, b); }

static inline float total(v4 x) {
  return (wasm_f32x4_extract_lane(x, 0) + wasm_f32x4_extract_lane(x, 1)) +
         (wasm_f32x4_extract_lane(x, 2) + wasm_f32x4_extract_lane(x, 3));
}

// e^x to 2e-7 (relative): 2^n times a polynomial on |r| <= ln 2 / 2, with ln 2 in two parts.
static inline v4 exponential(v4 x) {
  x = wasm_f32x4_max(splat(-87.0f), wasm_f32x4_min(splat(88.0f), x));
  v4 n = wasm_f32x4_nearest(mul(x, splat(1.44269504f)));
  v4 r = add(add(x, mul(n, splat(-0.693359375f))), mul(n, splat(2.12194440e-4f)));
  v4 p = splat(1.9875691e-4f);
  p = add(mul(p, r), splat(1.3981999e-3f));
  p = add(mul(p, r), splat(8.3334519e-3f));
  p = add(mul(p, r), splat(4.1665796e-2f));
  p = add(mul(p, r), splat(1.6666665e-1f));
  p = add(mul(p, r), splat(5.0e-1f));
  p = add(add(mul(mul(r, r), p), r), splat(1.0f));
  v4 power = wasm_i32x4_shl(wasm_i32x4_add(wasm_i32x4_trunc_sat_f32x4(n), wasm_i32x4_splat(127)), 23);
  return mul(p, power);
}

static inline v4 swish(v4 x) {
  return wasm_f32x4_div(x, add(splat(1.0f), exponential(wasm_f32x4_neg(x))));
}

// Four values from p of which `count` are there.
static inline v4 some(const float* p, int count) {
  float lanes[4] = {0, 0, 0, 0};
  for (int i = 0; i < count; i++) lanes[i] = p[i];
  return load(lanes);
}
static inline void put(float* p, v4 x, int count) {
  if (count >= 4) {
    wasm_v128_store(p, x);
    return;
  }
  float lanes[4];
  wasm_v128_store(lanes, x);
  for (int i = 0; i < count; i++) p[i] = lanes[i];
}

// out[rows, 8 columns] = a[rows, depth] panel[depth, 8] (+ bias[row]); `width` columns are kept.
static void panel_product(const float* a, const float* panel, const float* bias, float* out,
                          int rows, int depth, int step, int width) {
  int m = 0;
  for (; m + 4 <= rows; m += 4) {
    const float *a0 = a + m * depth, *a1 = a0 + depth, *a2 = a1 + depth, *a3 = a2 + depth;
    v4 c00, c01, c10, c11, c20, c21, c30, c31;
    c00 = c01 = splat(bias ? bias[m] : 0);
    c10 = c11 = splat(bias ? bias[m + 1] : 0);
    c20 = c21 = splat(bias ? bias[m + 2] : 0);
    c30 = c31 = splat(bias ? bias[m + 3] : 0);
    const float* b = panel;
    for (int k = 0; k < depth; k++, b += 8) {
      v4 b0 = load(b), b1 = load(b + 4), w;
      w = wasm_v128_load32_splat(a0 + k);
      c00 = add(c00, mul(w, b0)), c01 = add(c01, mul(w, b1));
      w = wasm_v128_load32_splat(a1 + k);
      c10 = add(c10, mul(w, b0)), c11 = add(c11, mul(w, b1));
      w = wasm_v128_load32_splat(a2 + k);
      c20 = add(c20, mul(w, b0)), c21 = add(c21, mul(w, b1));
      w = wasm_v128_load32_splat(a3 + k);
      c30 = add(c30, mul(w, b0)), c31 = add(c31, mul(w, b1));
    }
    float* o = out + m * step;
    put(o, c00, width), put(o + step, c10, width);
    put(o + 2 * step, c20, width), put(o + 3 * step, c30, width);
    if (width > 4) {
      o += 4;
      put(o, c01, width - 4), put(o + step, c11, width - 4);
      put(o + 2 * step, c21, width - 4), put(o + 3 * step, c31, width - 4);
    }
  }
  for (; m < rows; m++) {
    v4 c0 = splat(bias ? bias[m] : 0), c1 = c0;
    const float *a0 = a + m * depth, *b = panel;
    for (int k = 0; k < depth; k++, b += 8) {
      v4 w = wasm_v128_load32_splat(a0 + k);
      c0 = add(c0, mul(w, load(b))), c1 = add(c1, mul(w, load(b + 4)));
    }
    put(out + m * step, c0, width);
    if (width > 4) put(out + m * step + 4, c1, width - 4);
  }
}

// Convolution of one group. Eight outputs at a time: their inputs side by side, then a product.
// `bias` may be 0 (none). `scratch` holds 8 * cin * k * k floats.
EXPORT(conv)
void conv(const float* x, const float* w, const float* bias, float* out, float* scratch, int cin,
          int h, int wd, int cout, int k, int stride, int pad, int oh, int ow) {
  int depth = cin * k * k, pixels = oh * ow;
  for (int first = 0; first < pixels; first += 8) {
    int width = pixels - first < 8 ? pixels - first : 8;
    float* p = scratch;
    if (k == 1 && stride == 1 && pad == 0) {
      for (int c = 0; c < cin; c++, p += 8) {
        const float* from = x + c * pixels + first;
        if (width == 8) {
          wasm_v128_store(p, load(from)), wasm_v128_store(p + 4, load(from + 4));
        } else {
          for (int j = 0; j < 8; j++) p[j] = j < width ? from[j] : 0;
        }
      }
    } else {
      int row = first / ow, column = first % ow;
      int ys[8], xs[8], single = width == 8 && stride == 1 && column + 8 <= ow;
      for (int j = 0; j < 8; j++) {
        ys[j] = row * stride - pad, xs[j] = column * stride - pad;
        if (++column == ow) column = 0, row++;
      }
      for (int c = 0; c < cin; c++) {
        const float* plane = x + c * h * wd;
        for (int ky = 0; ky < k; ky++) {
          for (int kx = 0; kx < k; kx++, p += 8) {
            int y = ys[0] + ky, left = xs[0] + kx;
            if (single && y >= 0 && y < h && left >= 0 && left + 8 <= wd) {
              const float* from = plane + y * wd + left;
              wasm_v128_store(p, load(from)), wasm_v128_store(p + 4, load(from + 4));
              continue;
            }
            for (int j = 0; j < 8; j++) {
              int yy = ys[j] + ky, xx = xs[j] + kx;
              int inside = j < width && yy >= 0 && yy < h && xx >= 0 && xx < wd;
              p[j] = inside ? plane[yy * wd + xx] : 0;
            }
          }
        }
      }
    }
    panel_product(w, scratch, bias, out + first, cout, depth, pixels, width);
  }
}

// A filter for each channel by itself, which is what resamples with longer filters: a convolution,
// or where `up` a transposed one, which has no bias.
EXPORT(depthwise)
void depthwise(const float* x, const float* w, const float* bias, float* out, int up, int c, int h,
               int wd, int k, int stride, int pad, int oh, int ow) {
  for (int i = 0; i < c; i++, x += h * wd, w += k * k)
    for (int y = 0; y < oh; y++)
      for (int z = 0; z < ow; z++) {
        float sum = bias ? bias[i] : 0;
        for (int ky = 0; ky < k; ky++)
          for (int kx = 0; kx < k; kx++) {
            int yy = up ? y + pad - ky : y * stride - pad + ky;
            int xx = up ? z + pad - kx : z * stride - pad + kx;
            if (up && (yy % stride || xx % stride)) continue;
            if (up) yy /= stride, xx /= stride;
            if (yy >= 0 && yy < h && xx >= 0 && xx < wd) sum += x[yy * wd + xx] * w[ky * k + kx];
          }
        *out++ = sum;
      }
}

// out[rows, columns] = a[rows, depth] b[depth, columns]; b has strides. scratch: 8 * depth floats.
EXPORT(matmul)
void matmul(const float* a, const float* b, float* out, float* scratch, int rows, int depth,
            int columns, int by_depth, int by_column) {
  for (int first = 0; first < columns; first += 8) {
    int width = columns - first < 8 ? columns - first : 8;
    for (int k = 0; k < depth; k++)
      for (int j = 0; j < 8; j++)
        scratch[k * 8 + j] = j < width ? b[k * by_depth + (first + j) * by_column] : 0;
    panel_product(a, scratch, 0, out + first, rows, depth, columns, width);
  }
}

EXPORT(linear)
void linear(const float* x, const float* w, const float* bias, float* out, int in, int outs) {
  for (int o = 0; o < outs; o++, w += in) {
    v4 sum = splat(0);
    int i = 0;
    for (; i + 4 <= in; i += 4) sum = add(sum, mul(load(x + i), load(w + i)));
    if (i < in) sum = add(sum, mul(some(x + i, in - i), some(w + i, in - i)));
    out[o] = total(sum) + (bias ? bias[o] : 0);
  }
}

// Group norm with a weight and a bias a channel, then SiLU where `silu`.
EXPORT(group_norm)
void group_norm(const float* x, const float* w, const float* b, float* out, int channels, int area,
                int groups, float eps, int silu) {
  int each = channels / groups, count = each * area;
  for (int g = 0; g < groups; g++) {
    const float* from = x + g * count;
    v4 sum = splat(0);
    int i = 0;
    for (; i + 4 <= count; i += 4) sum = add(sum, load(from + i));
    if (i < count) sum = add(sum, some(from + i, count - i));
    float mean = total(sum) / count;
    v4 centre = splat(mean), square = splat(0);
    for (i = 0; i + 4 <= count; i += 4) {
      v4 d = wasm_f32x4_sub(load(from + i), centre);
      square = add(square, mul(d, d));
    }
    float squares = total(square);
    for (; i < count; i++) squares += (from[i] - mean) * (from[i] - mean);
    float scale = 1.0f / __builtin_sqrtf(squares / count + eps);
    for (int c = g * each; c < (g + 1) * each; c++) {
      v4 k = splat(scale * w[c]), shift = splat(b[c] - mean * scale * w[c]);
      for (i = 0; i < area; i += 4) {
        int left = area - i;
        v4 y = left >= 4 ? load(x + c * area + i) : some(x + c * area + i, left);
        y = add(mul(y, k), shift);
        put(out + c * area + i, silu ? swish(y) : y, left);
      }
    }
  }
}

EXPORT(silu)
void silu(const float* x, float* out, int n) {
  for (int i = 0; i < n; i += 4)
    put(out + i, swish(n - i >= 4 ? load(x + i) : some(x + i, n - i)), n - i);
}

// Rows of x become e^(scale x) over their sum.
EXPORT(softmax)
void softmax(const float* x, float* out, int rows, int n, float scale) {
  for (int r = 0; r < rows; r++, x += n, out += n) {
    float most = x[0] * scale, sum = 0;
    for (int i = 1; i < n; i++)
      if (x[i] * scale > most) most = x[i] * scale;
    for (int i = 0; i < n; i++) sum += out[i] = (float)exp(x[i] * scale - most);
    for (int i = 0; i < n; i++) out[i] /= sum;
  }
}

EXPORT(halve)
void halve(const float* x, float* out, int channels, int h, int w) {
  for (int c = 0; c < channels; c++, x += h * w)
    for (int y = 0; y + 1 < h; y += 2)
      for (int z = 0; z + 1 < w; z += 2) {
        const float* p = x + y * w + z;
        *out++ = (p[0] + p[1] + p[w] + p[w + 1]) * 0.25f;
      }
}

EXPORT(twice)
void twice(const float* x, float* out, int channels, int h, int w) {
  for (int c = 0; c < channels; c++, x += h * w)
    for (int y = 0; y < 2 * h; y++)
      for (int z = 0; z < 2 * w; z++) *out++ = x[(y >> 1) * w + (z >> 1)];
}

// Copy of three dimensions with strides: what transposes and concatenates.
EXPORT(copy)
void copy(const float* x, float* out, int a, int b, int c, int xa, int xb, int xc, int oa, int ob,
          int oc) {
  for (int i = 0; i < a; i++)
    for (int j = 0; j < b; j++)
      for (int k = 0; k < c; k++) out[i * oa + j * ob + k * oc] = x[i * xa + j * xb + k * xc];
}

// out[a, b] = x op y of two dimensions with strides; op: 0 add, 1 subtract, 2 multiply, 3 divide.
EXPORT(binary)
void binary(int op, const float* x, const float* y, float* out, int a, int b, int xa, int xb,
            int ya, int yb) {
  for (int i = 0; i < a; i++, out += b) {
    const float *p = x + i * xa, *q = y + i * ya;
    int j = 0;
    if (xb == 1 && op != 1 && op != 3)
      for (; j + 4 <= b; j += 4) {
        v4 other = yb == 1 ? load(q + j) : yb == 0 ? splat(q[0]) : splat(0);
        if (yb > 1) break;
        wasm_v128_store(out + j, op ? mul(load(p + j), other) : add(load(p + j), other));
      }
    for (; j < b; j++) {
      float s = p[j * xb], t = q[j * yb];
      out[j] = op == 0 ? s + t : op == 1 ? s - t : op == 2 ? s * t : s / t;
    }
  }
}

// op: 0 cos, 1 sin.
EXPORT(wave)
void wave(int op, const float* x, float* out, int n) {
  for (int i = 0; i < n; i++) out[i] = (float)(op ? sin(x[i]) : cos(x[i]));
}
