// Two panels, one for a drawing and one for a photograph.  Both make the 42 x 42 input u of the network from what the pad
// shows, by input = scale * pad + shift, and draw the window back onto the pad.
import { find } from "./handwriting.js";

const S = 42, PAD = 294, ZOOM = PAD / S; // sides of the network's input and of the pad
const PEN = 2.6, BOX = 20, SMALL = 14, LARGE = 24; // in pixels of the input: MNIST's pen, and the sizes of RTS
const SURE = 0.9;

const make = (tag, props = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
};

function panel(id, below) {
  const pad = make("canvas", { className: "pad", width: PAD, height: PAD });
  const out = make("canvas", { className: "small", width: 28, height: 28 });
  const said = make("output"), bars = [...Array(10)].map(() => make("i"));
  const rows = make("div", { className: "bars" }, ...bars.flatMap((bar, n) => [`${n}`, bar]));
  pad.setAttribute("aria-label", "what the network sees, with the window that it samples");
  out.setAttribute("aria-label", "what comes out of the transformer");
  const root = document.getElementById(id);
  root.append(make("figure", {}, pad, below), make("div", { className: "result" }, said, out, rows));
  root.hidden = false;
  return { pad, out, said, bars };
}

function grey(values, w) {
  const image = new ImageData(w, values.length / w);
  values.forEach((v, i) => image.data.set([255 * v, 255 * v, 255 * v, 255], 4 * i));
  return image;
}

// the sampling grid: a few of its lines, its outline, and its first row in red
function grid(pen, source, side, { scale, shift }) {
  const at = (i, j) => shift.map((by, k) => ((source[2 * (i * side + j) + k] + 1) / 2 * S - by) / scale);
  const n = [...Array(side).keys()], last = side - 1, back = [...n].reverse();
  const line = (colour, points) => {
    pen.strokeStyle = colour;
    pen.beginPath();
    points.forEach(point => pen.lineTo(...point));
    pen.stroke();
  };
  pen.lineWidth = 0.7;
  for (const i of [1, 2, 3].map(k => Math.round(k * last / 4))) {
    line("#4aa3ff", n.map(j => at(i, j)));
    line("#4aa3ff", n.map(j => at(j, i)));
  }
  pen.lineWidth = 2.5;
  line("#4aa3ff", [...n.map(i => at(i, last)), ...back.map(j => at(last, j)), ...back.map(i => at(i, 0))]);
  line("#ff5a4a", n.map(j => at(0, j)));
}

function clear({ pad, out, said, bars }, text) {
  pad.getContext("2d").clearRect(0, 0, PAD, PAD);
  out.getContext("2d").clearRect(0, 0, 28, 28);
  bars.forEach(bar => { bar.style.width = "0"; });
  said.textContent = text;
}

// runs the network on the latest input alone; `paint` draws what lies below the window
function runner(ort, session, view) {
  let waiting = null, busy = false;
  return async (u, place, paint) => {
    waiting = [u, place, paint];
    if (busy) return;
    busy = true;
    while (waiting) {
      const [values, at, below] = waiting;
      waiting = null;
      const { logits, source, v } = await session.run({ u: new ort.Tensor("float32", values, [1, 1, S, S]) });
      if (waiting) continue;
      const most = Math.max(...logits.data), e = logits.data.map(x => Math.exp(x - most));
      const total = e.reduce((a, b) => a + b), share = [...e].map(x => x / total);
      const [first, second] = share.map((_, n) => n).sort((a, b) => share[b] - share[a]);
      const percent = n => `${n} (${Math.round(100 * share[n])} %)`, side = v.dims[3], pen = view.pad.getContext("2d");
      below(pen);
      grid(pen, source.data, Math.round(Math.sqrt(source.dims[1])), at);
      view.out.width = view.out.height = side;
      view.out.getContext("2d").putImageData(grey(v.data.subarray(0, side * side), side), 0, 0);
      view.bars.forEach((bar, n) => { bar.style.width = `${100 * share[n]}%`; });
      view.said.textContent = share[first] < SURE ? `not sure: ${percent(first)} or ${percent(second)}` : percent(first);
    }
    busy = false;
  };
}

// strokes in pixels of the pad -> the network's input
function drawing(ort, session) {
  const turn = make("input", { type: "range", min: -60, max: 60, value: 0 });
  const again = make("button", { type: "button", textContent: "Clear" });
  const view = panel("draw", make("div", { className: "below" }, again, make("label", {}, "Turn", turn)));
  const run = runner(ort, session, view), { pad } = view;
  let strokes = [], stroke = null;

  function turned() {
    const angle = turn.value * Math.PI / 180, c = PAD / 2, cos = Math.cos(angle), sin = Math.sin(angle);
    return strokes.map(points => points.map(([x, y]) => [c + cos * (x - c) - sin * (y - c), c + sin * (x - c) + cos * (y - c)]));
  }
  function trace(pen, lines, width, { scale, shift }) {
    const place = point => point.map((v, k) => scale * v + shift[k]);
    pen.fillStyle = "black";
    pen.fillRect(0, 0, pen.canvas.width, pen.canvas.height);
    pen.lineCap = pen.lineJoin = "round";
    pen.lineWidth = width;
    pen.strokeStyle = "white";
    for (const points of lines) {
      pen.beginPath();
      points.forEach(point => pen.lineTo(...place(point)));
      pen.lineTo(...place(points[0].map((v, k) => points.length === 1 ? v + 0.1 : points.at(-1)[k])));
      pen.stroke();
    }
  }
  // a digit much larger or smaller than those of the training is scaled to their size for the network
  function sized(lines) {
    const points = lines.flat(), [x0, y0] = [0, 1].map(k => Math.min(...points.map(p => p[k])));
    const [x1, y1] = [0, 1].map(k => Math.max(...points.map(p => p[k]))), side = (Math.max(x1 - x0, y1 - y0) / ZOOM) + PEN;
    const scale = (side > LARGE || side < SMALL ? BOX / side : 1) / ZOOM;
    const shift = [[x0, x1], [y0, y1]].map(([low, high]) => {
      const half = scale * (high - low) / 2 + PEN / 2;
      return Math.min(Math.max((low + high) / 2 / ZOOM, half), S - half) - scale * (low + high) / 2;
    });
    return { scale, shift };
  }
  function update() {
    if (!strokes.length) return clear(view, "");
    const lines = turned(), place = sized(lines), pen = new OffscreenCanvas(S, S).getContext("2d", { willReadFrequently: true });
    trace(pen, lines, PEN, place);
    const { data } = pen.getImageData(0, 0, S, S), u = Float32Array.from({ length: S * S }, (_, i) => data[4 * i] / 255);
    return run(u, place, on => trace(on, lines, PEN * ZOOM, { scale: 1, shift: [0, 0] }));
  }
  const at = event => [event.offsetX * PAD / pad.clientWidth, event.offsetY * PAD / pad.clientHeight];
  pad.addEventListener("pointerdown", event => {
    pad.setPointerCapture(event.pointerId);
    strokes = turned();
    turn.value = 0;
    strokes.push(stroke = [at(event)]);
    update();
  });
  pad.addEventListener("pointermove", event => { if (stroke) { stroke.push(at(event)); update(); } });
  for (const name of ["pointerup", "pointercancel"]) pad.addEventListener(name, () => { stroke = null; update(); });
  turn.addEventListener("input", update);
  again.addEventListener("click", () => { strokes = []; turn.value = 0; update(); });
}

function photograph(ort, session) {
  const file = make("input", { type: "file", accept: "image/*", ariaLabel: "a photograph of one digit" });
  const view = panel("photo", make("div", { className: "below" }, file)), run = runner(ort, session, view);
  file.addEventListener("change", async () => {
    clear(view, "...");
    try {
      const picture = await createImageBitmap(file.files[0]), { digit, scale, shift } = find(picture);
      const u = new Float32Array(S * S), edge = (S - 28) / 2, fit = PAD / Math.max(picture.width, picture.height);
      digit.forEach((v, i) => { u[(edge + Math.floor(i / 28)) * S + edge + i % 28] = v; });
      const place = { scale: scale / fit, shift: shift.map(by => edge + by) };
      await run(u, place, pen => pen.drawImage(picture, 0, 0, fit * picture.width, fit * picture.height));
    } catch (error) {
      clear(view, error instanceof DOMException ? "Not a readable image." : error.message);
    }
  });
}

const status = document.getElementById("status");
try {
  if (location.protocol === "file:") throw new Error("it needs a server, such as: python -m http.server -d site");
  const ort = await import("./ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1; // more need headers that a static site cannot send
  const network = await fetch("digits.onnx");
  if (!network.ok) throw new Error("this copy of the site was built without the network");
  const session = await ort.InferenceSession.create(await network.arrayBuffer());
  drawing(ort, session);
  photograph(ort, session);
  status.textContent = "";
} catch (error) {
  status.textContent = `The demonstration does not run here: ${error.message}`;
}
