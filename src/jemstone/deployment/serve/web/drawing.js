// A drawing area for pointers and keys. Strokes are kept, so that the last one can be taken back.

import { find } from "./dom.js";

const STEP = 8; // pixels of the canvas that an arrow key moves the pen

/** Calls onStroke(blob) after each stroke, with null for an empty area; returns a function that calls it again. */
export function startDrawing(shape, onStroke) {
  const canvas = find("canvas");
  const brush = find("brush");
  const paint = canvas.getContext("2d");
  // Small grey data sets (MNIST and its kin) are bright on dark; photographs are not.
  const [paper, ink] = shape[0] === 1 ? ["#000", "#fff"] : ["#fff", "#1b2a4a"];
  const strokes = [];
  const pen = { x: canvas.width / 2, y: canvas.height / 2, down: false, stroke: null, keyboard: false };
  // About the width of a line in data of this size: over a pixel of 8 x 8 digits, two or three of 28 x 28.
  brush.value = Math.round((canvas.width / shape[1]) * (shape[1] <= 12 ? 1.2 : 2.4));

  function line(stroke) {
    paint.strokeStyle = ink;
    paint.lineWidth = stroke.width;
    paint.beginPath();
    const [first, ...others] = stroke.points;
    paint.moveTo(first.x, first.y);
    for (const point of others.length ? others : [first]) paint.lineTo(point.x, point.y);
    paint.stroke();
  }

  function repaint() {
    paint.fillStyle = paper;
    paint.fillRect(0, 0, canvas.width, canvas.height);
    paint.lineCap = paint.lineJoin = "round";
    strokes.forEach(line);
    find("undo").disabled = find("clear").disabled = strokes.length === 0;
    if (pen.keyboard) {
      paint.lineWidth = 2;
      paint.strokeStyle = pen.down ? "#f2a65a" : "#8a939c";
      paint.beginPath();
      paint.arc(pen.x, pen.y, Number(brush.value) / 2 + 2, 0, 2 * Math.PI);
      paint.stroke();
    }
  }

  function begin(x, y) {
    pen.down = true;
    pen.stroke = { width: Number(brush.value), points: [{ x, y }] };
    strokes.push(pen.stroke);
    repaint();
  }

  function go(x, y) {
    Object.assign(pen, { x, y });
    if (pen.down) pen.stroke.points.push({ x, y });
    repaint();
  }

  function end() {
    if (!pen.down) return;
    pen.down = false;
    repaint();
    ask();
  }

  function ask() {
    if (strokes.length === 0) return onStroke(null);
    const marked = pen.keyboard;
    pen.keyboard = false; // the mark of the pen is not part of the picture
    repaint();
    canvas.toBlob(onStroke, "image/png");
    pen.keyboard = marked;
    return repaint();
  }

  function at(event) {
    const box = canvas.getBoundingClientRect();
    const scale = canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    pen.keyboard = false;
    begin(...at(event));
  });
  canvas.addEventListener("pointermove", (event) => {
    if (pen.down && !pen.keyboard) go(...at(event));
  });
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);

  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    pen.keyboard = true;
    if (!move) return pen.down ? end() : begin(pen.x, pen.y);
    const within = (value) => Math.min(Math.max(value, 0), canvas.width);
    return go(within(pen.x + STEP * move[0]), within(pen.y + STEP * move[1]));
  });
  canvas.addEventListener("focus", () => {
    pen.keyboard = canvas.matches(":focus-visible");
    repaint();
  });
  canvas.addEventListener("blur", () => {
    end();
    pen.keyboard = false;
    repaint();
  });

  function keep(count) {
    strokes.length = count;
    if (count === 0) canvas.focus(); // the buttons are disabled now, and would drop the focus
    repaint();
    ask();
  }
  find("undo").addEventListener("click", () => keep(strokes.length - 1));
  find("clear").addEventListener("click", () => keep(0));
  repaint();
  return ask;
}
