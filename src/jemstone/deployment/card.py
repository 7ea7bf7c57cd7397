"""The model card: what a model is, how it was made, what it can and where it should not be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from jemstone.deployment.calibration import Saved
from jemstone.runs import Run
from jemstone.training.config import TrainConfig

_ROWS = {
    "accuracy": "Accuracy, %",
    "nll": "Negative log-likelihood, nats",
    "ece": "Expected calibration error, %",
    "scaled/ece": "Expected calibration error after temperature scaling, %",
    "ood/*/log_density/auroc": "AUROC of log p(x) against {}, %",
    "corruption/mean/accuracy": "Accuracy on corrupted inputs, mean of kinds, %",
    "pgd_linf/*": "Accuracy under PGD, L∞ ≤ {}, %",
    "pgd_l2/*": "Accuracy under PGD, L2 ≤ {}, %",
    "autoattack_linf/*": "Accuracy under AutoAttack, L∞ ≤ {}, %",
    "autoattack_l2/*": "Accuracy under AutoAttack, L2 ≤ {}, %",
    "likelihood/bits_per_dim": "Bits per dimension",
}
"""The results that a card shows, in this order; `{}` stands for what the star matched. All are in results.json."""


def model_card(run: Run, results: Sequence[Mapping[str, Any]], saved: Saved, *, license: str | None, name: str) -> str:
    """The README.md of the published model `run`, which is to be loaded by `name`: Markdown, with the hub's header."""
    info, data = run.info, run.info["data"]
    images = len(data["input_shape"]) == 3
    parts = [
        _header(info, results, license=license, name=name, images=images),
        f"# {name.rpartition('/')[2]}\n\n{_about(info)}",
        f"## Use\n\n{_use(info, name, images=images)}",
        f"## How it was made\n\n{_made(info, saved.step)}",
        f"## Results\n\n{_table(results, data)}",
        f"## When it says 'I don't know'\n\n{_abstention(saved)}",
        f"## Intended use and limits\n\n{_limits(info)}",
    ]
    return "\n\n".join(parts) + "\n"


def _header(
    info: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, license: str | None, name: str, images: bool
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    source, title = info["data"]["source"], info["data"]["name"]
    task = "image-classification" if images else "tabular-classification"
    found = next((row["value"] for row in results if row["name"] == "accuracy"), None)
    shown = [EvalResult(task, str(title), str(title), "accuracy", round(found, 6))] if found is not None else None
    card = ModelCardData(
        license=license,
        library_name="jemstone",
        pipeline_tag=task,
        tags=["energy-based-model", "calibration", "out-of-distribution-detection", "selective-classification"],
        datasets=[source.removeprefix("hf:")] if source.startswith("hf:") else None,
        metrics=["accuracy"],
        model_name=name.rpartition("/")[2] if shown else None,
        eval_results=shown,
    )
    return f"---\n{card.to_yaml()}\n---"


def _about(info: Mapping[str, Any]) -> str:
    config, data = info["config"], info["data"]
    shape = "x".join(map(str, data["input_shape"]))
    kind = (
        "A classifier trained as an energy-based model (JEM, Grathwohl et al., ICLR 2020): its logits f(x) give "
        "p(y|x) as a softmax and log p(x) = logsumexp f(x) up to a constant"
        if _generative(config)
        else "A plain classifier; logsumexp f(x) of its logits serves as a score of how usual an input is, and is not "
        "trained to be a density"
    )
    classes = ", ".join(data["class_names"][:20]) + (", ..." if data["num_classes"] > 20 else "")
    return (
        f"{kind}. Network `{config['network']['name']}`, inputs {shape}, {data['num_classes']} classes: {classes}. "
        "Made with jemstone."
    )


def _use(info: Mapping[str, Any], name: str, *, images: bool) -> str:
    example = '["photo.png"]' if images else "rows"
    own = ", network=NETWORK" if info["config"]["network"]["name"] == "custom" else ""
    return (
        "```python\nfrom jemstone import Predictor\n\n"
        f'predictor = Predictor.load("{name}"{own})\n'
        f"print(predictor({example})[0])  # label, calibrated probability, log-density, accepted or why not\n```"
    )


def _made(info: Mapping[str, Any], step: int) -> str:
    config, data, environment = info["config"], info["data"], info["environment"]
    sizes = data["sizes"]
    origin = info.get("imported")
    lines = [
        f"- Data: {data['name']}, {sizes['train']} training, {sizes['validation']} validation and {sizes['test']} test "
        f"examples (digest `{data['digest'][:16]}`).",
        f"- Recipe `{config['recipe']}`, seed {config['seed']}, "
        + (f"weights from {origin['file']}." if origin else f"{step} steps."),
        f"- jemstone {environment['jemstone']}, torch {environment['torch']}, {environment['date'][:10]}.",
    ]
    if environment.get("command", "").startswith("jemstone "):
        lines.append(f"\n```\n{environment['command']}\n```")
    return "\n".join(lines)


def _table(results: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> str:
    rows = []
    for pattern, words in _ROWS.items():
        before, _, after = pattern.partition("*")
        for row in results:
            if fnmatchcase(row["name"], pattern):
                label = words.format(row["name"].removeprefix(before).removesuffix(after))
                value, low, high = (_number(row[part], words) for part in ("value", "low", "high"))
                rows.append(f"| {label} | {value} | {low} to {high} | {row['n']} |")
    if not rows:
        return "Not evaluated: `jemstone evaluate RUN` measures it."
    head = "| | Value | 95 % interval | n |\n| --- | --- | --- | --- |"
    return f"On the test examples of {data['name']}.\n\n" + "\n".join([head, *rows]) + "\n\nAll of them: results.json."


def _number(value: float | None, words: str) -> str:
    if value is None:
        return "not finite"
    return f"{100 * value:.1f}" if words.endswith("%") else f"{value:.3f}"


def _abstention(saved: Saved) -> str:
    policy, calibration = saved.policy, saved.calibration
    count = len(calibration.reference) + len(calibration.log_density)
    nothing = (
        "It accepts nothing: these examples are too few, or its errors too many, for any confidence to keep that share "
        "of errors. Load it with a laxer policy.\n\n"
        if calibration.thresholds(policy).confidence == math.inf
        else ""
    )
    return (
        f"Thresholds by split conformal prediction, from {calibration.source or f'{count} held-out examples'}; "
        f"temperature {calibration.temperature:.4g}. On inputs like these examples (exchangeable with them):\n\n"
        f"- at most {_share(policy.rejection)} are refused as out of distribution, on average over calibrations;\n"
        f"- at most {_share(policy.error)} of the accepted ones are labelled wrongly, with probability "
        f"{_share(1 - policy.delta)} over calibrations;\n"
        f"- the candidates contain the true label in at least {_share(policy.coverage)} of cases, on average over "
        f"calibrations.\n\n{nothing}"
        "Of other inputs nothing is promised: how well those are recognised is an empirical matter, see the results. "
        "On data of your own, calibrate again."
    )


def _share(value: float) -> str:
    return f"{100 * value:.4g} %"


def _limits(info: Mapping[str, Any]) -> str:
    generative = _generative(info["config"])
    samples = " Samples show what the model takes for likely, and may resemble training data." if generative else ""
    return (
        f"For inputs like those of {info['data']['name']}, to study calibrated and abstaining classification. It was "
        "not examined for bias against groups of people, nor for decisions about them. An unusual input can be "
        "accepted and a usual one refused. log p(x) is known up to a constant: compare values of this model only."
        f"{samples}"
    )


def _generative(config: Mapping[str, Any]) -> bool:
    return TrainConfig.from_dict(dict(config)).weights.generative
