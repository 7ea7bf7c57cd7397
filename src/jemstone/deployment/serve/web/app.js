// The page: brings a picture to the model, and its answer to you.

import { Refusal, getModel, predict, rememberToken } from "./api.js";
import { showAbout } from "./about.js";
import { showAnswer, showTrouble } from "./answer.js";
import { proposeChange, startChanging } from "./changing.js";
import { find, make } from "./dom.js";
import { startDrawing } from "./drawing.js";
import { startExamples } from "./examples.js";
import { startGallery } from "./gallery.js";
import { showPicture, startPictures } from "./pictures.js";

let model = null;
const current = { blob: null, asking: null };

/** Ask about a picture; null takes the last one back. `from` is where it came from: draw stays where it is. */
async function ask(blob, from = "image") {
  current.asking?.abort();
  const asking = (current.asking = new AbortController());
  current.blob = blob;
  if (from !== "draw") showPicture(blob);
  find("change").hidden = true;
  if (blob === null) return showAnswer(model, null);
  find("result").setAttribute("aria-busy", "true");
  try {
    const { prediction, seen } = await predict(blob, asking.signal);
    showAnswer(model, prediction, seen);
    proposeChange(model, prediction);
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (refusedForToken(error)) return undefined;
    showTrouble(model, told(error));
  } finally {
    if (current.asking === asking) find("result").removeAttribute("aria-busy");
  }
  return from === "draw" ? undefined : bringIntoView(find("result"));
}

function told(error) {
  if (error instanceof Refusal) return error.message;
  console.error(error);
  return "Something in this page went wrong. Load it again.";
}

function refusedForToken(error) {
  if (error.status !== 401) return false;
  find("key").hidden = false;
  find("token").focus();
  return true;
}

function bringIntoView(element) {
  const { top } = element.getBoundingClientRect();
  if (top >= 0 && top < 0.7 * window.innerHeight) return;
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  element.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}

/** Run a slow request and show in `place` that it runs, or why it failed; undefined where it did. */
async function waiting(place, words, request) {
  const button = place.parentElement.querySelector("form button");
  button.disabled = true;
  place.replaceChildren(make("p", { class: "waiting" }, words));
  try {
    return await request();
  } catch (error) {
    place.replaceChildren(make("p", { class: "refused" }, told(error)));
    refusedForToken(error);
    return undefined;
  } finally {
    button.disabled = false;
  }
}

function startSwitch() {
  for (const choice of document.querySelectorAll("input[name=from]"))
    choice.addEventListener("change", () => {
      find("drop").hidden = choice.value === "draw";
      find("draw").hidden = choice.value !== "draw";
      ask(null);
    });
}

async function start() {
  try {
    model = await getModel();
  } catch (error) {
    if (!refusedForToken(error)) find("facts").textContent = told(error);
    return;
  }
  find("key").hidden = true;
  document.body.classList.add("ready");
  showAbout(model);
  showAnswer(model, null);
  startGallery(model, ask, waiting);
  if (model.kind === "vectors") {
    find("picture").replaceChildren(
      make("p", {}, "This model takes vectors, and pictures are all this page can show. Ask it through POST /v1/predict."),
    );
    return;
  }
  startSwitch();
  startPictures(ask);
  startDrawing(model.input_shape, (blob) => ask(blob, "draw"));
  startChanging(model, () => current.blob, waiting);
  startExamples(model, ask);
}

find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberToken(find("token").value.trim());
  start();
});
start();
