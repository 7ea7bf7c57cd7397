// What the model says of one picture, in words and bars.

import { size } from "./about.js";
import { drawHistogram } from "./histogram.js";
import { find, make, nats, percent, share } from "./dom.js";

const MANY = 12; // classes above which the most probable are shown and the others folded

/** The verdict as {said, why, accepted}: `said` in a word or two, `why` in a sentence. */
export function verdict(model, prediction) {
  const { label, probability, reason, accepted } = prediction;
  if (accepted) return { said: label, why: `Probability ${percent(probability)}, calibrated. Familiar enough, and clear enough, to be accepted.`, accepted };
  const guess = `Forced to guess, it would say ${label} (${percent(probability)}).`;
  const foreign = reason.includes("out of distribution");
  if (!foreign && model.thresholds.confidence === null)
    return { said: "I don't know", why: `No confidence keeps the error that was promised, so nothing is accepted. ${guess}`, accepted };
  const why = {
    "out of distribution": `Out of distribution: this is unlike what the model learnt from. ${guess}`,
    ambiguous: `Ambiguous: it looks familiar, but not clearly of one class. ${guess}`,
  };
  const both = `Out of distribution and ambiguous: this is unlike what the model learnt from, and not clearly of one class. ${guess}`;
  return { said: "I don't know", why: why[reason] ?? both, accepted };
}

/** Where the log density lies among held-out data, in a sentence. */
export function whereItLies(model, { log_density: value, typicality }) {
  if (value === null || typicality === null) return "Its log-density is not a number.";
  const count = model.reference.count;
  const below = Math.round((typicality * (count + 1)) / 100) - 1;
  const start = `Its log-density, ${nats(value)}, is`;
  if (below <= 0) return `${start} lower than that of all ${count} held-out examples.`;
  if (below >= count) return `${start} higher than that of all ${count} held-out examples.`;
  return `${start} higher than that of ${percent(below / count)} of ${count} held-out examples.`;
}

function bar(name, probability, candidate, top) {
  const filled = make("span", { class: "filled" });
  filled.style.width = `${100 * probability}%`;
  const kind = `${top ? "top" : ""} ${candidate ? "candidate" : ""}`.trim();
  return make(
    "li",
    { class: kind },
    make("span", { class: "name" }, name),
    make("span", { class: "track", "aria-hidden": "true" }, filled),
    make("span", { class: "share" }, percent(probability)),
  );
}

function bars(prediction) {
  const all = Object.entries(prediction.probabilities);
  const row = ([name, probability]) => bar(name, probability, prediction.candidates.includes(name), name === prediction.label);
  if (all.length <= MANY) return all.map(row); // in the order of the classes: while drawing, nothing jumps
  const sorted = all.sort((one, other) => other[1] - one[1]);
  const rest = make("ol", { class: "bars" }, ...sorted.slice(MANY).map(row));
  const folded = make("details", {}, make("summary", {}, `${sorted.length - MANY} more classes`), rest);
  return [...sorted.slice(0, MANY).map(row), make("li", { class: "more" }, folded)];
}

function candidates(model, prediction) {
  const coverage = share(model.policy.coverage);
  const names = prediction.candidates;
  if (names.length === 0) return "No class is probable enough to be a candidate.";
  const list = names.length === 1 ? `Only candidate: ${names[0]}.` : `Candidates: ${names.join(", ")}.`;
  return `${list} For ${coverage} of familiar pictures, the candidates contain the true class.`;
}

/** Show a prediction, or null: nothing was asked yet. `seen` is the address of the picture as the model gets it. */
export function showAnswer(model, prediction, seen) {
  drawHistogram(model.reference, model.thresholds.density, prediction ? (prediction.log_density ?? NaN) : null);
  find("answer").hidden = prediction === null;
  const place = find("verdict");
  if (prediction === null) {
    place.className = "verdict empty";
    place.replaceChildren(
      make("p", { class: "said" }, "Nothing asked yet"),
      make("p", {}, "Choose an example, or bring a picture of your own."),
    );
    find("where").textContent = `The bars are ${model.reference.count} held-out examples by their log-density: further right, more familiar.`;
    find("said").textContent = find("status").textContent = "";
    return;
  }
  const { said, why, accepted } = verdict(model, prediction);
  place.className = `verdict ${accepted ? "accepted" : "abstained"}`;
  place.replaceChildren(
    make("p", { class: "kind" }, accepted ? "Accepted" : "Abstained"),
    make("p", { class: "said" }, said),
    make("p", {}, why),
  );
  find("bars").replaceChildren(...bars(prediction));
  find("candidates").textContent = candidates(model, prediction);
  find("seen").src = seen;
  find("seen-size").textContent = size(model);
  find("where").textContent = whereItLies(model, prediction);
  find("said").textContent = accepted ? `${said}, ${percent(prediction.probability)}` : said;
  find("status").textContent = `${accepted ? `Accepted: ${said}.` : `${said}.`} ${why}`;
}

/** Show why there is no answer. */
export function showTrouble(model, message) {
  drawHistogram(model.reference, model.thresholds.density, null);
  find("answer").hidden = true;
  const place = find("verdict");
  place.className = "verdict trouble";
  place.replaceChildren(make("p", { class: "kind" }, "No answer"), make("p", { class: "why" }, message));
  find("where").textContent = "";
  find("said").textContent = "No answer";
  find("status").textContent = `No answer. ${message}`;
}
