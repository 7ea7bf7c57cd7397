// The page: brings a picture to the model, and its answer to you.

import { Refusal, getInterface, getModel, hasToken, predict, rememberToken } from "./api.js";
import { showAbout } from "./about.js";
import { showAnswer, showTrouble } from "./answer.js";
import { proposeChange, startChanging } from "./changing.js";
import { find, make } from "./dom.js";
import { startDrawing } from "./drawing.js";
import { startExamples } from "./examples.js";
import { startGallery } from "./gallery.js";
import { showPicture, standIn, startPictures } from "./pictures.js";

let model = null;
const current = { blob: null, asking: null };

/** Ask about a picture, where null takes the last one back; `from` is "file" for all that was not drawn. */
async function ask(blob, from = "file") {
  current.asking?.abort();
  const asking = (current.asking = new AbortController());
  current.blob = blob;
  show(from);
  if (from === "file") showPicture(blob);
  find("change").hidden = true;
  if (blob === null) return showAnswer(model, null);
  find("result").setAttribute("aria-busy", "true");
  try {
    const { prediction, seen } = await predict(blob, asking.signal);
    showAnswer(model, prediction, seen);
    proposeChange(model, prediction);
    if (from === "file") standIn(seen);
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    showTrouble(model, told(error));
    if (askForToken(error)) return undefined;
  } finally {
    if (current.asking === asking) find("result").removeAttribute("aria-busy");
  }
  return from === "draw" ? undefined : bringIntoView(find("result"));
}

function show(from) {
  document.querySelector(`input[value=${from}]`).checked = true;
  find("drop").hidden = from === "draw";
  find("draw").hidden = from !== "draw";
}

function told(error) {
  if (error instanceof Refusal) return error.message;
  console.error(error);
  return "Something in this page went wrong. Load it again.";
}

function askForToken(error) {
  if (error.status !== 401) return false;
  find("key").hidden = false;
  if (find("token").value) find("key-words").textContent = "That is not the token. Look for spaces at its ends, and try again.";
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
    askForToken(error);
    return undefined;
  } finally {
    button.disabled = false;
  }
}

async function start() {
  try {
    model = await getModel();
  } catch (error) {
    if (!askForToken(error)) find("trouble").textContent = told(error);
    return;
  }
  document.body.classList.add("ready");
  showAbout(model);
  showAnswer(model, null);
  startGallery(model, ask, waiting);
  if (model.kind === "vectors") {
    const words = "This model takes vectors, and this page shows it pictures. Ask it through POST /v1/predict.";
    find("picture").replaceChildren(make("p", {}, words));
    return;
  }
  startPictures(ask);
  const askAboutDrawing = startDrawing(model.input_shape, (blob) => ask(blob, "draw"));
  document.querySelector("input[value=file]").addEventListener("change", () => ask(null));
  document.querySelector("input[value=draw]").addEventListener("change", askAboutDrawing);
  startChanging(model, () => current.blob, waiting);
  startExamples(model, ask);
}

find("key").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberToken(find("token").value.trim());
  find("key").hidden = true;
  if (model === null) start();
});
find("interface").addEventListener("click", async (event) => {
  if (!hasToken()) return; // a link as any other
  event.preventDefault();
  const text = JSON.stringify(await getInterface(), null, 1);
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: "openapi.json" });
  link.click();
});
start();
