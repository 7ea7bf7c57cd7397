// Elements from words: no markup is ever parsed, so nothing that a server or a file name says can become markup.

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export const make = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);

export const draw = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

/** A measured share; the spaces do not break. */
export function percent(part) {
  if (part == null) return "no number";
  if (part > 0.9995) return "> 99.9 %";
  if (part < 0.0005) return "< 0.1 %";
  return `${(100 * part).toFixed(1)} %`;
}

/** A share that somebody chose, as they wrote it: 0.05 is 5 %. */
export const share = (value) => `${Number((100 * value).toPrecision(3))} %`;

export function nats(value) {
  if (value == null || !Number.isFinite(value)) return "not a number";
  const rounded = Number(value.toPrecision(4));
  return `${rounded.toLocaleString("en", { maximumFractionDigits: 3 }).replace("-", "−")} nats`;
}
