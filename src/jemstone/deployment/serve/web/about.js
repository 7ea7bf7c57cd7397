// What is served, and what its promises mean.

import { find, make, nats, percent, share } from "./dom.js";

const whole = (number) => number.toLocaleString("en");

export function size(model) {
  if (model.kind === "vectors") return `vectors of ${model.input_shape[0]} numbers`;
  const [channels, height, width] = model.input_shape;
  return `${width} × ${height} ${channels === 1 ? "grey" : "colour"}`;
}

function facts(model) {
  const { density, confidence } = model.thresholds;
  return [
    ["Model", `${model.name}, recipe ${model.recipe}, step ${whole(model.step)}`],
    ["Takes", `${size(model)}; pictures of other sizes are resized`],
    ["Classes", model.classes.length > 40 ? `${model.classes.length}` : model.classes.join(", ")],
    ["Kind", model.generative ? "energy-based: it classifies, and it holds a density to draw from" : "plain classifier with an energy score"],
    ["Calibrated on", `${model.calibrated_on}; temperature ${model.temperature.toFixed(2)}`],
    [
      "Accepts from",
      `${density === null ? "any log-density" : `log-density ${nats(density)}`} and ` +
        `${confidence === null ? "no probability at all" : `probability ${percent(confidence)}`}`,
    ],
    ["Version", `jemstone ${model.jemstone}`],
  ];
}

function promises({ error, rejection, coverage, delta }) {
  return [
    `Of the labels it accepts, at most ${share(error)} are wrong. That fails only if the held-out examples were lucky ones: a chance of ${share(delta)} at most.`,
    `Of pictures like the training data, at most ${share(rejection)} are refused as out of distribution.`,
    `The candidates contain the true class for at least ${share(coverage)} of such pictures.`,
  ];
}

export function showAbout(model) {
  find("facts").textContent = `${model.name} · ${size(model)} · ${model.classes.length} classes`;
  document.title = `${model.name} · jemstone`;
  const list = facts(model).flatMap(([name, words]) => [make("dt", {}, name), make("dd", {}, words)]);
  find("model").replaceChildren(
    make("dl", {}, ...list),
    make("h3", {}, "What it promises"),
    make("ul", {}, ...promises(model.policy).map((words) => make("li", {}, words))),
    make(
      "p",
      { class: "hint" },
      "The promises hold for pictures drawn like the held-out examples, whatever the model (split conformal prediction). " +
        "For other pictures nothing is promised: most foreign ones are refused, and how many is a matter of measurement.",
    ),
  );
}
