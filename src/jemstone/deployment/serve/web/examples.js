// A few pictures to begin with: samples of the model, and some that nothing was learnt about.

import { find, make } from "./dom.js";
import { foreignPictures } from "./foreign.js";
import { familiarPictures, tile } from "./gallery.js";

function group(title, pictures, ask) {
  const tiles = pictures.map(({ name, blob }) => tile(`Ask about ${name}`, URL.createObjectURL(blob), name, () => ask(blob)));
  return make("div", { class: "examples" }, make("h3", {}, title), make("div", { class: "tiles small" }, ...tiles));
}

export async function startExamples(model, ask) {
  const place = find("examples");
  place.append(group("Foreign", await foreignPictures(model.input_shape), ask));
  if (!model.generative) return;
  const empty = make("div", { class: "examples" }, make("h3", {}, "From the model"), make("p", { class: "waiting" }, "Being drawn …"));
  place.prepend(empty);
  try {
    empty.replaceWith(group("From the model", await familiarPictures(model), ask));
  } catch {
    empty.remove(); // examples are a courtesy: the gallery says why samples cannot be had
  }
}
