// Samples of the model: as examples to ask about, and by class on demand.

import { blobOf, sample } from "./api.js";
import { find, make, percent } from "./dom.js";

const ROW = 10;

/** A picture that asks about itself when it is chosen. */
export function tile(name, src, words, choose) {
  const shown = make("img", { src, alt: "", class: "pixels" });
  const caption = words === "" ? null : make("span", { class: "words" }, words);
  return make("button", { type: "button", class: "tile", "aria-label": name, onclick: choose }, shown, caption);
}

const caption = ({ accepted, label, probability }) => (accepted ? `${label}, ${percent(probability)}` : "I don't know");

function options(classes) {
  return [
    make("option", { value: "each" }, classes.length > ROW ? "Some of each" : "One of each"),
    make("option", { value: "any" }, "Any"),
    ...classes.map((name, index) => make("option", { value: index }, name)),
  ];
}

/** What to ask for: {labels, count}. */
function wanted(choice, model) {
  const most = Math.min(ROW, model.limits.max_samples);
  if (choice === "any") return { labels: null, count: most };
  if (choice !== "each") return { labels: [Number(choice)], count: most };
  const every = model.classes.map((_, index) => index);
  const step = Math.max(1, every.length / most);
  const labels = Array.from({ length: Math.min(most, every.length) }, (_, i) => every[Math.floor(i * step)]);
  return { labels, count: labels.length };
}

export function startGallery(model, ask, waiting) {
  if (!model.generative) {
    find("sampling").remove();
    find("gallery-about").textContent =
      "This model is a plain classifier: it was trained without chains, so its density has no samples to show, and it " +
      "cannot move a picture toward a class. Train a generative recipe, such as jem-small, and both appear here.";
    return;
  }
  find("of").replaceChildren(...options(model.classes));
  find("sampling").addEventListener("submit", async (event) => {
    event.preventDefault();
    const { labels, count } = wanted(find("of").value, model);
    const place = find("sampled");
    const words = `Drawing ${count} pictures, ${model.sampling.steps} steps each …`;
    const answer = await waiting(place, words, () => sample(labels, count, null));
    if (!answer) return;
    const tiles = answer.samples.map(({ image, label, prediction }) =>
      tile(`Ask about this sample${label ? ` of ${label}` : ""}: ${caption(prediction)}`, image, caption(prediction), async () => ask(await blobOf(image))),
    );
    place.replaceChildren(make("div", { class: "tiles" }, ...tiles));
  });
}

/** A few samples to begin with, the same at each visit; kept for the tab, because they take the server a while. */
export async function familiarPictures(model) {
  const key = `samples of ${model.name} at ${model.step}`;
  let samples = JSON.parse(sessionStorage.getItem(key) ?? "null");
  if (samples === null) {
    const labels = wanted("each", model).labels.slice(0, 4);
    ({ samples } = await sample(labels, labels.length, 0));
    sessionStorage.setItem(key, JSON.stringify(samples));
  }
  return Promise.all(samples.map(async ({ image, label }) => ({ name: label ?? "sample", blob: await blobOf(image) })));
}
