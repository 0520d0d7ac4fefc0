// stn/experiments/datasets/handwriting.py in the browser: turns a photograph of one digit into an image like MNIST's.
// An image is {w, h, a}: its sides and its values in [0, 1], row by row.

const WORK_PX = 320, PAPER = 0.25, FAINT = 0.08, NOISE = 6, EDGE = 0.4, GAP = 0.12, OTHER = 0.5, SMALLEST = 1 / 16;
const DIGIT_PX = 28, BOX_PX = 20, STROKE_PX = 2.2;

const clip = (x, low, high) => Math.min(Math.max(x, low), high);
const map = (image, f) => ({ ...image, a: image.a.map(f) });

function quantile(values, q) {
  const sorted = Float32Array.from(values).sort(), at = q * (sorted.length - 1), low = Math.floor(at);
  return sorted[low] + (at - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
}

// along rows, then along columns: f(line, out) reads one line and writes another
function separable({ w, h, a }, f) {
  const half = new Float32Array(w * h), whole = new Float32Array(w * h);
  const row = new Float32Array(w), column = new Float32Array(h), out = new Float32Array(Math.max(w, h));
  for (let y = 0; y < h; y++) { row.set(a.subarray(y * w, y * w + w)); f(row, out); half.set(out.subarray(0, w), y * w); }
  for (let x = 0; x < w; x++) {
    for (let y = 0; y < h; y++) column[y] = half[y * w + x];
    f(column, out);
    for (let y = 0; y < h; y++) whole[y * w + x] = out[y];
  }
  return { w, h, a: whole };
}

// the mean or the extreme of the `side` values around each; values beyond the ends do not count
function mean(image, side) {
  const before = side >> 1;
  return separable(image, (line, out) => {
    for (let i = 0, from = 0, to = 0, sum = 0; i < line.length; i++) {
      while (to < line.length && to < i - before + side) sum += line[to++];
      while (from < i - before) sum -= line[from++];
      out[i] = sum / (to - from);
    }
  });
}
function extreme(image, side, sign, before = side >> 1) { // the maximum for sign 1, the minimum for -1
  const queue = new Int32Array(Math.max(image.w, image.h)); // indices of candidates, the best first
  return separable(image, (line, out) => {
    for (let i = 0, to = 0, first = 0, last = 0; i < line.length; i++) {
      for (; to < line.length && to < i - before + side; to++) {
        while (last > first && sign * line[queue[last - 1]] <= sign * line[to]) last--;
        queue[last++] = to;
      }
      while (queue[first] < i - before) first++;
      out[i] = line[queue[first]];
    }
  });
}

function grey(picture) {
  const scale = WORK_PX / Math.max(picture.width, picture.height);
  const w = Math.max(1, Math.round(scale * picture.width)), h = Math.max(1, Math.round(scale * picture.height));
  const pen = new OffscreenCanvas(w, h).getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, w, h);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, 0, 0, w, h);
  const { data } = pen.getImageData(0, 0, w, h), a = new Float32Array(w * h);
  for (let i = 0; i < a.length; i++) a[i] = (0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]) / 255;
  return mean({ w, h, a }, 3);
}

function inkOf(image) {
  const side = Math.round(PAPER * Math.max(image.w, image.h)), around = mean(image, 2 * side + 1).a;
  const bright = image.a.reduce((sum, v, i) => sum + (v - around[i]) ** 3, 0) > 0;
  if (bright) image = map(image, v => 1 - v);
  const paper = extreme(extreme(image, side, 1), side, -1, side - 1 - (side >> 1)).a;
  const ink = map(image, (v, i) => 1 - v / Math.max(paper[i], 1e-3)), middle = quantile(ink.a, 0.5);
  return map(ink, v => v - middle);
}

// connected components (8 neighbours): the label of every pixel, 0 for none
function parts({ w, h, a }) {
  const label = new Int32Array(w * h), stack = [];
  let count = 0;
  for (let start = 0; start < a.length; start++) {
    if (!a[start] || label[start]) continue;
    label[start] = ++count;
    stack.push(start);
    while (stack.length) {
      const at = stack.pop(), x = at % w, y = (at - x) / w;
      for (let v = Math.max(0, y - 1); v <= Math.min(h - 1, y + 1); v++)
        for (let u = Math.max(0, x - 1); u <= Math.min(w - 1, x + 1); u++)
          if (a[v * w + u] && !label[v * w + u]) { label[v * w + u] = count; stack.push(v * w + u); }
    }
  }
  return label;
}

function boxes(label, { w, a }) {
  const found = new Map();
  label.forEach((n, i) => {
    if (!n || !a[i]) return;
    const x = i % w, y = (i - x) / w, box = found.get(n) ?? [x, y, x + 1, y + 1];
    found.set(n, [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x + 1), Math.max(box[3], y + 1)]);
  });
  return found;
}
const size = ([x0, y0, x1, y1]) => Math.max(x1 - x0, y1 - y0);

function oneDigit(ink) {
  const { w, h } = ink, peak = quantile(ink.a, 0.999), sigma = -quantile(ink.a, 0.25) / 0.674;
  if (peak < Math.max(FAINT, NOISE * sigma)) throw new Error("No ink is visible in it: use a dark pen on bright paper.");
  const mask = map(ink, v => (v > EDGE * peak ? 1 : 0));
  const largest = Math.max(...[...boxes(parts(mask), mask).values()].map(size));
  const label = parts(extreme(mask, 2 * Math.round(GAP * largest / 2) + 1, 1)), found = boxes(label, mask);
  const inside = [...found].filter(([, b]) => b[0] > 0 && b[1] > 0 && b[2] < w && b[3] < h && size(b) >= SMALLEST * Math.max(w, h));
  const chosen = (inside.length ? inside : [...found]).sort((p, q) => size(q[1]) - size(p[1]));
  const [x0, y0, x1, y1] = chosen[0][1], overlaps = b => b[0] < x1 && b[2] > x0 && b[1] < y1 && b[3] > y0;
  const others = chosen.filter(([, b]) => !overlaps(b) && size(b) >= OTHER * size(chosen[0][1])).length;
  if (others) throw new Error(`It shows ${others + 1} separate figures: crop it to one digit.`);
  const mine = new Map(chosen.filter(([, b]) => overlaps(b))), corners = [...mine.values()];
  const box = [0, 1, 2, 3].map(k => Math[k < 2 ? "min" : "max"](...corners.map(b => b[k])));
  return { mask: map(mask, (v, i) => (v && mine.has(label[i]) ? 1 : 0)), box };
}

// weighted by area when it shrinks, the nearest pixel when it grows
function resized({ w, h, a }, [x0, y0, x1, y1], scale) {
  const W = Math.max(1, Math.round(scale * (x1 - x0))), H = Math.max(1, Math.round(scale * (y1 - y0)));
  const out = new Float32Array(W * H), fx = (x1 - x0) / W, fy = (y1 - y0) / H;
  for (let Y = 0; Y < H; Y++) for (let X = 0; X < W; X++) {
    let sum = 0;
    for (let y = Math.floor(Y * fy); y < Math.min((Y + 1) * fy, y1 - y0); y++)
      for (let x = Math.floor(X * fx); x < Math.min((X + 1) * fx, x1 - x0); x++)
        sum += a[(y0 + y) * w + x0 + x] * (Math.min(x + 1, (X + 1) * fx) - Math.max(x, X * fx)) * (Math.min(y + 1, (Y + 1) * fy) - Math.max(y, Y * fy));
    out[Y * W + X] = sum / (fx * fy);
  }
  return { w: W, h: H, a: out };
}

// every pixel becomes the maximum of a disc around it
function widened({ w, h, a }, radius) {
  const out = new Float32Array(w * h), whole = Math.ceil(radius);
  a.forEach((value, i) => {
    if (!value) return;
    const x = i % w, y = (i - x) / w;
    for (let v = Math.max(0, y - whole); v <= Math.min(h - 1, y + whole); v++)
      for (let u = Math.max(0, x - whole); u <= Math.min(w - 1, x + whole); u++)
        if ((u - x) ** 2 + (v - y) ** 2 <= radius * radius + 0.25) out[v * w + u] = Math.max(out[v * w + u], value);
  });
  return { w, h, a: out };
}

function asMnist(ink, mask, box) {
  const eroded = extreme(mask, 3, -1).a, inked = ink.a.filter((_, i) => mask.a[i]);
  const edge = inked.length - eroded.reduce((sum, v) => sum + v, 0);
  const wider = Math.round(STROKE_PX * size(box) / BOX_PX - 2 * inked.length / edge), level = quantile(inked, 0.5);
  const near = extreme(mask, 5, 1).a;
  let full = map(ink, (v, i) => (near[i] ? clip(v / level, 0, 1) : 0));
  if (wider > 0) full = widened(full, wider / 2);
  const [whole] = boxes(new Int32Array(full.a.length).fill(1), map(full, v => (v > EDGE ? 1 : 0))).values();
  const { w, h, a } = resized(full, whole, BOX_PX / size(whole));
  let total = 0, mx = 0, my = 0, most = 0;
  a.forEach((v, i) => { total += v; mx += v * (i % w); my += v * Math.floor(i / w); most = Math.max(most, v); });
  const left = Math.round(clip(DIGIT_PX / 2 - 0.5 - mx / total, 0, DIGIT_PX - w));
  const top = Math.round(clip(DIGIT_PX / 2 - 0.5 - my / total, 0, DIGIT_PX - h));
  const digit = new Float32Array(DIGIT_PX * DIGIT_PX);
  a.forEach((v, i) => { digit[(top + Math.floor(i / w)) * DIGIT_PX + left + i % w] = v / most; });
  return { digit, scale: BOX_PX / size(whole), shift: [left - whole[0] * BOX_PX / size(whole), top - whole[1] * BOX_PX / size(whole)] };
}

// picture: anything that a canvas can draw.  Returns its digit, 28 x 28 values, and the map digit = scale * picture + shift.
export function find(picture) {
  const image = grey(picture), ink = inkOf(image), { mask, box } = oneDigit(ink), { digit, scale, shift } = asMnist(ink, mask, box);
  return { digit, scale: scale * Math.max(image.w, image.h) / Math.max(picture.width, picture.height), shift };
}
