"""The evaluation suite on a classifier and a JEM of the same network: every section, at the standard budget.

    python benchmarks/evaluation.py digits [--out DIR]
    python benchmarks/evaluation.py fashion --data DIR [--out DIR]
    python benchmarks/evaluation.py cifar --data DIR --inception FILE [--out DIR]

DIR holds fashion_mnist.npz, mnist.npz, textures.npz, cifar10.npz. A run that lies in --out already is not trained
again, and sections that were measured are not measured again. `cifar` trains a Wide ResNet for a few steps only: it
shows that the pipeline runs through FID with the Inception network, not what such a model can do. Writes
results/evaluation_NAME.json: all results of both runs, warnings, notes, seconds by section, and the comparison.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import common

from jemstone.data import Dataset, load_dataset
from jemstone.evaluation import BUDGETS, Protocol
from jemstone.evaluation.compare import HEADLINE, compare_runs
from jemstone.evaluation.evaluate_run import evaluate_run
from jemstone.evaluation.table_text import as_json, as_markdown
from jemstone.report import write_report
from jemstone.runs import Run
from jemstone.training.config import TrainConfig
from jemstone.training.recipes import recipe
from jemstone.training.session import Session

MORE = ("brier", "scaled/nll", "scaled/ece", "corruption/mean/accuracy", "pgd_linf/0.1", "distal/auroc")


def configurations(name: str, data: Path) -> dict[str, TrainConfig]:
    """The classifier first: it is what the JEM is compared with."""
    if name == "digits":
        return {"classifier": recipe("classifier-small"), "jem": recipe("jem-small")}
    if name == "fashion":
        changes = {"steps": 3000, "validate_every": 1000, "data": {"source": str(data / "fashion_mnist.npz")}}
        # Group normalisation for both, as the recipe `jemstone-small` has it: the network is the same.
        classifier = recipe("classifier-small").with_values(network={"norm": "group"}, **changes)
        return {"classifier": classifier, "jem": recipe("jemstone-small").with_values(**changes)}
    changes = {
        "steps": 60,
        "validate_every": 0,
        "network": {"name": "wrn-10-2", "norm": "group", "activation": "silu"},
    }
    return {
        "classifier": recipe("classifier-small").with_values(**changes),
        "jem": recipe("jemstone-small").with_values(chains={"steps": 5, "buffer_size": 200}, **changes),
    }


def data_of(name: str, data: Path) -> Dataset | None:
    """A few images of CIFAR-10, for the Inception network takes half a second for each on a CPU; None: all images."""
    if name != "cifar":
        return None
    whole = load_dataset(str(data / "cifar10.npz"))
    train, validation, test = whole.train.spread(600), whole.validation.spread(100), whole.test.spread(300)
    return replace(whole, train=train, validation=validation, test=test)


def protocol_of(name: str, inception: Path | None) -> Protocol:
    """The standard budget; for CIFAR-10 the samples of the quick one, in the features of the Inception network."""
    if name != "cifar":
        return BUDGETS["standard"]
    quick = BUDGETS["quick"]
    generation = replace(quick.generation, extractor=f"inception={inception}", samples=100, by_class_samples=100)
    return replace(quick, generation=generation).only("calibration", "generation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["digits", "fashion", "cifar"])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the .npz files")
    parser.add_argument("--inception", type=Path, help="TorchScript file of the FID Inception network")
    parser.add_argument("--out", type=Path, help="where the runs go (default: runs/evaluation-NAME)")
    options = parser.parse_args()
    out = options.out or Path("runs") / f"evaluation-{options.name}"
    foreign = {name: str(options.data / f"{name}.npz") for name in ("mnist", "textures")}
    protocol = protocol_of(options.name, options.inception)
    data = data_of(options.name, options.data)
    runs: dict[str, Any] = {}
    for name, config in configurations(options.name, options.data).items():
        path = out / name
        if not (path / "config.json").exists():
            for row in Session.start(config, data, run=path).train():
                if row["step"] % 100 == 0:
                    print(f"{name}  step {row['step']}", flush=True)
        began = time.perf_counter()
        results = evaluate_run(
            path, data=data, ood=foreign if options.name == "fashion" else None, protocol=protocol, on_progress=print
        )
        figures = Run(path).read_json("figures.json")
        runs[name] = {
            "recipe": config.recipe,
            "step": figures["step"],
            "seconds": figures["seconds"],
            "this_call_s": round(time.perf_counter() - began, 1),
            "warnings": [{key: warning[key] for key in ("section", "name", "text")} for warning in figures["warnings"]],
            "notes": figures["notes"],
            "results": [result._asdict() for result in results],
        }
    paths = [out / name for name in runs]
    write_report(paths, out / "report.html")
    table = compare_runs(paths, metrics=[*HEADLINE, *MORE])
    print(as_markdown(table))
    comparison = json.loads(as_json(table))
    for row in comparison["rows"]:
        del row["path"]  # of the machine that it was measured on, as that of the extractor
    if options.inception is not None:
        figures["protocol"]["generation"]["extractor"] = f"inception={options.inception.name}"
    content = {"protocol": figures["protocol"], "runs": runs, "comparison": comparison}
    print(f"written to {common.write(f'evaluation_{options.name}', content)}")


if __name__ == "__main__":
    main()
