// Where a log density lies among those of held-out training data.

import { draw, find, nats } from "./dom.js";

const HEIGHT = 168;
const TOP = 48; // for two lines of words above the bars
const BOTTOM = 26; // for the numbers below
const SIDE = 6;

let watcher = null;

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) found.push(at);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step))) };
}

const words = (x, y, text, attributes = {}) => draw("text", { x, y, ...attributes }, text);

function inside(x, width, room) {
  if (x < room) return "start";
  return x > width - room ? "end" : "middle";
}

/** Show {edges, counts} with threshold and value in nats, value null where nothing was asked yet; again at each width. */
export function drawHistogram(...shown) {
  watcher?.disconnect();
  watcher = new ResizeObserver(() => paint(...shown));
  watcher.observe(find("histogram"));
}

function paint(histogram, threshold, value) {
  const place = find("histogram");
  const width = Math.max(240, place.clientWidth);
  const { edges, counts } = histogram;
  const [first, last] = [edges[0], edges[edges.length - 1]];
  const margin = 0.04 * (last - first);
  // The axis reaches out to the value as far as half as wide again; beyond that, an arrow says so.
  const reach = 0.5 * (last - first);
  const wish = value == null || !Number.isFinite(value) ? first : value;
  const low = Math.max(Math.min(first, wish), first - reach) - margin;
  const high = Math.min(Math.max(last, wish), last + reach) + margin;
  const x = (at) => SIDE + ((at - low) / (high - low)) * (width - 2 * SIDE);
  const floor = HEIGHT - BOTTOM;
  const most = Math.max(...counts, 1);

  const bars = counts.map((count, i) => {
    const tall = count === 0 ? 0 : Math.max(1.5, (count / most) * (floor - TOP));
    const middle = (edges[i] + edges[i + 1]) / 2;
    return draw("rect", {
      class: middle < threshold ? "bar below" : "bar",
      x: x(edges[i]) + 0.5,
      y: floor - tall,
      width: Math.max(0.5, x(edges[i + 1]) - x(edges[i]) - 1),
      height: tall,
      rx: 1,
    });
  });
  const { found, digits } = ticks(low, high, width > 500 ? 6 : 4);
  const axis = [draw("line", { class: "axis", x1: SIDE, x2: width - SIDE, y1: floor, y2: floor })];
  for (const at of found) {
    if (x(at) > 24 && x(at) < width - 24)
      axis.push(words(x(at), floor + 17, at.toFixed(digits).replace("-", "−"), { class: "tick", "text-anchor": "middle" }));
  }
  const marks = [];
  if (Number.isFinite(threshold) && threshold > low && threshold < high) {
    marks.push(draw("line", { class: "threshold", x1: x(threshold), x2: x(threshold), y1: TOP - 10, y2: floor }));
    marks.push(words(x(threshold) + 6, TOP - 2, "familiar →", { class: "tick" }));
    if (x(threshold) > 70) marks.push(words(x(threshold) - 6, TOP - 2, "← foreign", { class: "tick", "text-anchor": "end" }));
  }
  if (value != null) marks.push(...marker(x, value, low, high, threshold, floor, width));
  place.replaceChildren(
    draw(
      "svg",
      { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": label(histogram, threshold, value) },
      ...bars,
      ...axis,
      ...marks,
    ),
  );
}

function marker(x, value, low, high, threshold, floor, width) {
  const foreign = !(value >= threshold);
  const off = !(value >= low) ? -1 : value > high ? 1 : 0;
  const at = off < 0 ? SIDE + 2 : off > 0 ? width - SIDE - 2 : x(value);
  const kind = foreign ? "here foreign" : "here";
  const parts = [];
  if (off) parts.push(draw("path", { class: kind, d: `M${at} ${floor - 12}l${-off * 12} -7v14z` }));
  else parts.push(draw("line", { class: kind, x1: at, x2: at, y1: 22, y2: floor }), draw("circle", { class: kind, cx: at, cy: floor, r: 5 }));
  const anchor = off < 0 ? "start" : off > 0 ? "end" : inside(at, width, 90);
  parts.push(words(at, 15, `this picture: ${nats(value)}`, { class: `${kind} label`, "text-anchor": anchor }));
  return parts;
}

function label(histogram, threshold, value) {
  const count = histogram.counts.reduce((sum, one) => sum + one, 0);
  const range = `${nats(histogram.edges[0])} to ${nats(histogram.edges[histogram.edges.length - 1])}`;
  const here = value == null ? "" : ` This picture: ${nats(value)}.`;
  return `Histogram of the log-density of ${count} held-out examples, ${range}; foreign below ${nats(threshold)}.${here}`;
}
