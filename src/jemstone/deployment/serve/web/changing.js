// "What would it change?": the picture moved toward a class, before, after and in between.

import { counterfactual } from "./api.js";
import { find, make, nats, percent } from "./dom.js";

async function pixels(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = make("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const paint = canvas.getContext("2d", { willReadFrequently: true });
  paint.drawImage(image, 0, 0);
  return { canvas, paint, data: paint.getImageData(0, 0, canvas.width, canvas.height) };
}

/** after - before, averaged over the channels: orange where it became brighter, blue where darker. */
async function difference(before, after) {
  const [one, other] = await Promise.all([pixels(before), pixels(after)]);
  const [from, to] = [one.data.data, other.data.data];
  for (let i = 0; i < from.length; i += 4) {
    const change = (to[i] + to[i + 1] + to[i + 2] - from[i] - from[i + 1] - from[i + 2]) / 3 / 255;
    const strength = Math.min(1, Math.sqrt(Math.abs(change)));
    const [middle, colour] = [[236, 238, 240], change > 0 ? [200, 80, 10] : [15, 90, 165]];
    for (let c = 0; c < 3; c++) to[i + c] = middle[c] + strength * (colour[c] - middle[c]);
  }
  other.paint.putImageData(other.data, 0, 0);
  return other.canvas.toDataURL();
}

const picture = (src, alt, title, words) =>
  make("figure", {}, make("img", { src, alt, class: "pixels" }), make("figcaption", {}, make("b", {}, title), " ", words));

const judged = (prediction) => (prediction.accepted ? prediction.label : `I don't know (${prediction.reason})`);

function row(name, before, after) {
  return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, before), make("td", {}, after));
}

function table(label, before, after) {
  const heads = ["", "Before", "After"].map((name) => (name ? make("th", { scope: "col" }, name) : make("td")));
  return make(
    "table",
    {},
    make("thead", {}, make("tr", {}, ...heads)),
    make(
      "tbody",
      {},
      row(`Probability of ${label}`, percent(before.probabilities[label]), percent(after.probabilities[label])),
      row("Log-density", nats(before.log_density), nats(after.log_density)),
      row("It says", judged(before), judged(after)),
    ),
  );
}

/** `currentPicture()` is the blob that was asked about last. */
export function startChanging(model, currentPicture, waiting) {
  const select = find("toward");
  const place = find("changed");
  select.replaceChildren(...model.classes.map((name, index) => make("option", { value: index }, name)));

  find("change").querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const blob = currentPicture();
    const label = model.classes[select.value];
    const answer = await waiting(place, `Moving the picture toward ${label} …`, () =>
      counterfactual(blob, Number(select.value)),
    );
    if (!answer || blob !== currentPicture()) return;
    const { original, changed, steps } = answer;
    const [after] = changed;
    place.replaceChildren(
      make(
        "div",
        { class: "three" },
        picture(original.image, "The picture before", "Before", ""),
        picture(after.image, `The picture moved toward ${label}`, "After", `${steps} steps`),
        picture(await difference(original.image, after.image), "What changed", "Difference", "orange brighter, blue darker"),
      ),
      table(label, original.prediction, after.prediction),
    );
  });
}

/** Another picture: propose its runner-up class, and forget what was changed in the last one. */
export function proposeChange(model, prediction) {
  const others = model.classes.map((name, index) => index).filter((index) => index !== prediction.index);
  others.sort((one, other) => prediction.probabilities[model.classes[other]] - prediction.probabilities[model.classes[one]]);
  find("toward").value = others[0];
  find("changed").replaceChildren();
  find("change").hidden = !model.generative;
}
