"""The command line as its users meet it: every command as a process of its own, every mistake explained.

Importing torch takes seconds for each process, so runs are shared and most mistakes are made in this process.
"""

import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import jemstone
import jemstone.demo
from jemstone.cli import main
from jemstone.console import plain_console, results_table
from jemstone.errors import Diverged
from jemstone.evaluation import BUDGETS
from jemstone.evaluation.evaluate_run import read_results
from jemstone.networks import WideResNet
from jemstone.networks.release_layouts import LAYOUTS
from jemstone.training.loop import train_step
from jemstone.training.recipes import RECIPES, recipe

TINY = ["--chains.steps", "2", "--chains.buffer_size", "100", "--batch_size", "16", "--real_batch_size", "16"]
QUICK = BUDGETS["quick"]
CHEAP = replace(QUICK, resamples=5, ood=replace(QUICK.ood, images=20)).only("calibration", "ood")
FEW = ("--budget", "quick", "--only", "calibration", "ood", "robustness")


def jemstone_process(*arguments, cwd=None):
    """The command in a process of its own. A user's mistake is never a traceback."""
    return process([sys.executable, "-m", "jemstone", *map(str, arguments)], cwd)


def process(command, cwd=None):
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def trained(home):
    """A run of 12 steps, made by the command with a file of settings, dotted settings and the two shorthands."""
    (home / "settings.yaml").write_text("steps: 5\nchains:\n  steps: 2\n  noise: 0.02\ncheckpoint_every: 4\n")
    few = ["--chains.buffer_size", "100", "--batch_size", "16", "--real_batch_size=16", "--keep_checkpoints", "9"]
    short = ["--data", "digits", "--network=conv-8", "--config", "settings.yaml", "--steps", "12"]
    done = jemstone_process("train", "jem-small", *short, *few, "--run", "jem", cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "jem", done


@pytest.fixture(scope="module")
def run(trained):
    return trained[0]


@pytest.fixture(scope="module")
def classifier(home):
    path = home / "classifier"
    assert main(["train", "classifier-small", "--network", "conv-8", "--steps", "3", "--run", str(path)]) == 0
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory: commands that name no --run write below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


def fails(capsys, *arguments):
    """What standard error says when a command fails with an explanation; standard output holds no error."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert "error" not in out
    return err


def misused(capsys, *arguments):
    """What standard error says when a command could not be understood."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: jemstone")
    assert "error: " in err
    return err


# Every command, as a process


def test_without_arguments_the_help_is_printed():
    done = jemstone_process()
    assert done.returncode == 0
    for command in ("train", "evaluate", "compare", "import", "sample", "report", "doctor", "recipes", "demo"):
        assert f"\n    {command} " in done.stdout


def test_version():
    done = jemstone_process("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"jemstone {jemstone.__version__}")


def test_train_writes_a_run_and_says_what_comes_next(trained):
    run, done = trained
    assert done.stdout.startswith("jem-small on digits, device ")
    assert "jem-small  step 12/12  class_nll " in done.stdout
    assert done.stdout.endswith("Finished. Next: jemstone evaluate jem\n")
    assert done.stderr == ""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 12]
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "validation", "finished"]
    assert len(list((run / "checkpoints").iterdir())) == 4  # steps 0, 4, 8, 12


def test_settings_come_from_the_recipe_then_the_file_then_the_command_line(run):
    config = json.loads((run / "config.json").read_text())["config"]
    assert config["recipe"] == "jem-small"
    assert config["weights"]["class_nll"] == recipe("jem-small").weights.class_nll != 1.0  # recipe
    assert (config["chains"]["steps"], config["chains"]["noise"], config["checkpoint_every"]) == (2, 0.02, 4)  # file
    assert (config["steps"], config["chains"]["buffer_size"]) == (12, 100)  # command line, steps over the file's
    assert (config["data"]["source"], config["network"]["name"]) == ("digits", "conv-8")  # shorthands
    assert config["network"]["activation"] == "silu"  # a shorthand leaves the neighbours of what it sets


def test_resume_ends_where_the_run_would_have_ended(run, copy):
    last = Path("checkpoints", "step-00000012.safetensors")
    (copy / last).unlink()
    done = jemstone_process("train", "--resume", copy)
    assert done.returncode == 0, done.stderr
    assert "at step 8 of 12." in done.stdout
    assert (copy / last).read_bytes() == (run / last).read_bytes()


@pytest.fixture(scope="module")
def evaluated(run, classifier, home):
    rng = np.random.default_rng(0)
    np.savez(home / "letters.npz", test_images=rng.integers(0, 256, (40, 12, 12, 3), dtype=np.uint8))
    near = ("--near", "letters=letters.npz")
    return jemstone_process("evaluate", "jem", *near, *FEW, "--against", "classifier", cwd=home)


def test_evaluate_writes_results_and_shows_both_runs(evaluated, run, classifier):
    assert evaluated.returncode == 0, evaluated.stderr
    results = {row["name"]: row for row in json.loads((run / "results.json").read_text())}
    assert results["ood/letters/log_density/auroc"]["n"] == 360 + 40
    assert "ood/letters/log_density/auroc" in evaluated.stdout
    assert "aupr" not in evaluated.stdout  # without --full
    (header,) = [line for line in evaluated.stdout.splitlines() if line.split()[:1] == ["metric"]]
    assert header.split() == ["metric", "better", "classifier", "jem"]
    (line,) = [line for line in evaluated.stdout.splitlines() if line.split()[:1] == ["accuracy"]]
    others = {row["name"]: row for row in json.loads((classifier / "results.json").read_text())}
    assert line.split()[2] == f"{others['accuracy']['value']:.3f}"
    assert line.split()[5] == f"{results['accuracy']['value']:.3f}"
    assert "Next: jemstone report jem classifier" in evaluated.stdout


def test_sample_draws_a_grid(run, home):
    out = home / "new folder" / "x.png"
    done = jemstone_process("sample", run, "--count", "12", "--steps", "3", "--out", out)
    assert (done.returncode, done.stdout) == (0, f"12 samples in {out}\n")
    cell = 8 * 6 + 2
    assert Image.open(out).size == (10 * cell + 2, 2 * cell + 2)


def test_report_puts_runs_into_one_page(evaluated, home):
    done = jemstone_process("report", "jem", "classifier", "--out", "both.html", cwd=home)
    assert (done.returncode, done.stdout) == (0, "Report: both.html\n")
    page = (home / "both.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    for expected in ("jem-small", "classifier-small", "letters"):
        assert expected in page


def test_doctor_gives_its_verdict_first_and_draws_the_figure(copy):
    (copy / "doctor.png").unlink(missing_ok=True)
    done = jemstone_process("doctor", copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("verdict: unknown: too little is logged to judge\n")  # two rows
    assert done.stdout.endswith(f"Figure: {copy / 'doctor.png'}\n")
    assert Image.open(copy / "doctor.png").size[0] > 800


def test_recipes_lists_every_recipe():
    done = jemstone_process("recipes")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines() if line[:1].strip()][:-1] == list(RECIPES)


def test_an_error_is_told_on_standard_error_with_status_1(home):
    done = jemstone_process("evaluate", "nowhere", cwd=home)
    assert done.returncode == 1
    assert done.stderr.startswith("error: There is no run directory at nowhere.")


def test_a_wrong_use_has_status_2_and_a_short_usage(home):
    done = jemstone_process("train", "jem-small", "--chains.stepz", "3", cwd=home)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: jemstone train RECIPE ")
    assert "--chains.stepz" in done.stderr
    assert len(done.stderr.splitlines()) < 8


DEMO = """
import sys
import jemstone.demo
from jemstone import recipe
from jemstone.cli import main
from jemstone.evaluation import BUDGETS

small = {"network": {"name": "conv-8"}, "chains": {"steps": 2, "buffer_size": 100}, "steps": 3}
cheap = BUDGETS["quick"].only("calibration")
assert jemstone.demo.BUDGETS is BUDGETS
jemstone.demo.BUDGETS = {"quick": cheap}
jemstone.demo.recipe = lambda name: recipe(name).with_values(**small)
sys.exit(main(["demo", *sys.argv[1:]]))
"""


def test_demo(tmp_path, capsys):
    """The command in a process of its own, with fewer steps and a cheaper protocol than its own."""
    out = tmp_path / "demo"
    done = process([sys.executable, "-c", DEMO, "--out", str(out), "--seed", "3"])
    assert done.returncode == 0, done.stderr
    assert f"Report: {out / 'report.html'}" in done.stdout
    assert [word for word in done.stdout.split() if word == "jem-small:"] == ["jem-small:"] * 2  # training, evaluation
    page = (out / "report.html").read_text()
    for name in ("classifier-small", "jem-small"):
        info = json.loads((out / name / "config.json").read_text())
        assert (info["config"]["recipe"], info["config"]["seed"]) == (name, 3)
        assert (out / name / "results.json").is_file()
        assert name in page
    assert "Choose another --out" in fails(capsys, "demo", "--out", out)


# The rest in this process


def test_demo_takes_its_two_recipes_as_they_are():
    assert jemstone.demo.RECIPES == ("classifier-small", "jem-small")
    assert set(jemstone.demo.RECIPES) <= set(RECIPES)


def test_default_run_directory_is_named_after_what_is_run(here):
    assert main(["train", "classifier-small", "--network", "mlp-4", "--steps", "1", "--seed", "7"]) == 0
    assert (here / "runs" / "classifier-small-digits-7" / "config.json").is_file()


def test_a_run_called_like_a_recipe_does_not_lend_its_settings(here):
    arguments = ["train", "--run", "jem", "classifier-small", "--network", "mlp-4", "--steps", "1"]
    assert main(arguments) == 0
    config = json.loads((here / "jem" / "config.json").read_text())["config"]
    expected = recipe("classifier-small").with_values(network={"name": "mlp-4"}, steps=1).to_dict()
    assert config == json.loads(json.dumps(expected))  # tuples are lists there


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_printed_and_read_back(name, capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["train", name, "--print_config"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    (tmp_path / "all.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["train", name, "--config", str(tmp_path / "all.yaml"), "--print_config"])
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(text)
    assert f"recipe: {name}\n" in text


def test_paths_are_printed_as_they_are(here, capsys):
    """Rich takes [bold] for markup and :warning: for a picture; paths may hold both."""
    odd = "my [bold]run :warning:"
    assert main(["train", "jem-small", "--network", "mlp-4", "--steps", "1", *TINY, "--run", odd]) == 0
    assert f"run {odd}\n" in capsys.readouterr().out
    assert odd in fails(capsys, "train", "jem-small", "--run", odd)


@pytest.mark.parametrize(
    ("options", "name", "count"),
    [
        (["--label", "3"], "grid-3.png", 5),
        (["--buffer"], "buffer.png", 5),
        (["--label", "4", "--steps", "1", "--seed", "2"], "grid-4.png", 5),
    ],
)
def test_samples_by_class_and_from_the_buffer(copy, capsys, options, name, count):
    assert main(["sample", str(copy), "--count", str(count), *options]) == 0
    out = copy / "samples" / name
    assert capsys.readouterr().out == f"{count} samples in {out}\n"
    assert Image.open(out).size[0] == 50 * count + 2


def test_fast_samples_say_how_they_were_computed(copy, capsys):
    assert main(["sample", str(copy), "--count", "2", "--steps", "1", "--fast"]) == 0
    small = "the network is too small for anything else to be faster"
    out = copy / "samples" / "grid.png"
    assert capsys.readouterr().out == f"Computed in float32: {small}.\n2 samples in {out}\n"


def test_chains_of_the_buffer_by_class_have_a_file_of_their_own(copy, capsys):
    trained = jemstone.load_trained(copy)
    classes = trained.logits(trained.buffer).argmax(dim=1)
    label = int(classes.mode().values)
    assert main(["sample", str(copy), "--count", "3", "--buffer", "--label", str(label)]) == 0
    out = copy / "samples" / f"buffer-{label}.png"
    assert capsys.readouterr().out == f"3 samples in {out}\n"
    assert out.is_file()
    missing = sorted(set(range(10)) - set(classes.tolist()))
    for absent in missing[:1]:  # a model of 12 steps hardly sees all ten
        err = fails(capsys, "sample", copy, "--buffer", "--label", absent)
        assert f"No chain of the buffer is assigned to class {absent}" in err


def test_samples_depend_on_their_options(copy):
    def pixels(*options):
        out = copy / "x.png"
        assert main(["sample", str(copy), "--count", "4", "--steps", "4", "--out", str(out), *options]) == 0
        return out.read_bytes()

    first = pixels()
    assert pixels() == first
    assert pixels("--seed", "1") != first
    assert pixels("--label", "0") != pixels("--label", "1")


@pytest.fixture
def asked(monkeypatch):
    """What `evaluate` asks for, without the work."""
    calls = []

    def record(path, *, ood, protocol, fresh, on_progress, fabric):
        assert fabric is None, "one process has no ranks"
        calls.append((str(path), dict(ood), protocol, fresh))
        return []

    monkeypatch.setattr("jemstone.cli.evaluate_run", record)
    return calls


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--ood", "a=1", "--ood", "b=2"],
        ["--ood", "a=1", "--ood", "b=2", "run"],
        ["--ood", "a=1", "b=2", "run"],
        ["run", "--ood", "a=1", "b=2"],
        ["--ood=a=1", "run", "--ood=b=2"],
        ["--ood", "a=1", "run", "--ood", "b=2", "--full"],
    ],
)
def test_foreign_sets_are_named_one_by_one_or_together_wherever_they_stand(arguments, asked):
    assert main(["evaluate", *arguments]) == 0
    assert [call[:2] for call in asked] == [("run", {"a": "1", "b": "2"})]


def test_against_evaluates_both_runs_even_where_one_has_results(asked, copy):
    (copy / "results.json").write_text("[]")
    assert main(["evaluate", "run", "--against", str(copy), "--ood", "a=x=1"]) == 0
    assert [call[:2] for call in asked] == [(str(copy), {"a": "x=1"}), ("run", {"a": "x=1"})]


def test_what_is_measured_is_what_was_asked_for(asked):
    assert main(["evaluate", "run"]) == 0
    assert main(["evaluate", "run", "--budget", "quick", "--only", "ood", "generation", "--fresh"]) == 0
    assert main(["evaluate", "run", "--near", "a=1", "--ood", "b=2", "--extractor", "inception=x.pt"]) == 0
    assert [call[1] for call in asked] == [{}, {}, {"a": "1", "b": "2"}]
    assert [call[3] for call in asked] == [False, True, False]
    assert asked[0][2] == BUDGETS["standard"]
    assert asked[1][2] == BUDGETS["quick"].only("ood", "generation")
    assert asked[2][2].ood.near == (*BUDGETS["standard"].ood.near, "a")
    assert asked[2][2].generation.extractor == "inception=x.pt"


def test_compare_shows_and_writes_one_table(evaluated, home):
    done = jemstone_process("compare", "classifier", "jem", "--out", "t/a.md", "t/a.tex", "t/a.json", cwd=home)
    assert done.returncode == 0, done.stderr
    table = (home / "t" / "a.md").read_text()
    assert table.strip() in done.stdout
    assert "| classifier" in table
    assert "| jem" in table
    assert "paired bootstrap" in table
    assert "\\begin{tabular}" in (home / "t" / "a.tex").read_text()
    assert [row["label"] for row in json.loads((home / "t" / "a.json").read_text())["rows"]] == ["classifier", "jem"]
    assert "--out takes files that end in .md, .tex, .json" in done_of(home, "compare", "jem", "--out", "a.png")


def done_of(home, *arguments):
    done = jemstone_process(*arguments, cwd=home)
    assert done.returncode == 1
    return done.stderr


def test_import_makes_a_run_that_samples(tmp_path, monkeypatch, capsys):
    """A file as the original release writes it: names of its own, a buffer inside."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(200) % 10
    np.savez("set.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    network = WideResNet(10, 1, num_classes=10, in_channels=3, norm="none", activation="leaky_relu")
    state = {LAYOUTS["jem"].key(key): value for key, value in network.state_dict().items()}
    state |= {"f.linear.weight": torch.zeros(10, 64), "f.linear.bias": torch.zeros(10)}
    torch.save({"model_state_dict": state, "replay_buffer": torch.zeros(20, 3, 32, 32)}, "CIFAR10_MODEL.pt")
    arguments = ["CIFAR10_MODEL.pt", "--layout", "jem", "--network", "wrn-10-1", "--data", "set.npz", "--out", "jem"]
    assert main(["import", *arguments]) == 0
    assert capsys.readouterr().out == "Imported CIFAR10_MODEL.pt into jem. Next: jemstone evaluate jem\n"
    assert main(["sample", "jem", "--count", "2", "--steps", "1"]) == 0
    capsys.readouterr()
    assert "imported" in fails(capsys, "train", "--resume", "jem")


def test_two_runs_of_one_name_are_two_columns(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jemstone.cli.BUDGETS", {"standard": CHEAP})
    one, two = (Path(shutil.copytree(run, tmp_path / part / "jem")) for part in "ab")
    for copied in (one, two):
        (copied / "results.json").unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "a/jem", "--against", "b/jem", "--full"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (header,) = [line.split() for line in lines if line.split()[:1] == ["metric"]]
    assert header == ["metric", "better", "b/jem", "a/jem"]
    assert any("/fpr95" in line for line in lines)
    assert (one / "results.json").read_text() == (two / "results.json").read_text()


def test_a_divergence_is_explained(here, capsys):
    err = fails(capsys, "train", "jem-small", "--network", "mlp-4", "--limits.gap", "1e-12", "--run", "d", *TINY)
    assert "diverged at step 1" in err
    assert "limits.gap" in err


ILL = ["train", "jem-small", "--network", "mlp-4", *TINY, "--steps", "12", "--log_every", "1", "--run", "ill"]
REASON = "the median energy_gap over 25 steps is -6.69 nats"


@pytest.fixture
def failing(here, monkeypatch):
    """Makes step 9 of a run fail so many times."""

    def fail(times):
        left = [times]

        def step(state, trainer):
            if state.step == 8 and left[0]:
                left[0] -= 1
                raise Diverged(9, REASON, {"energy_gap": -9.0}, verdict="gap_explosion", onset=5)
            return train_step(state, trainer)

        monkeypatch.setattr("jemstone.training.session.train_step", step)

    return fail


@pytest.mark.parametrize("times", [1, 2])
def test_rollbacks_are_told_while_training_and_explained_after_it(failing, capsys, times):
    failing(times)
    assert main(ILL) == 0
    out = capsys.readouterr().out
    start = (
        "jem-small  step 9: gap_explosion (the energies of data and negatives run apart). Back to step 0, going on with"
    )
    told = [line for line in out.splitlines() if "Back to step" in line]
    assert len(told) == times
    assert told[0].startswith(f"{start}: learning rate x 0.3, ")
    assert f"Recovered {['once', '2 times'][times - 1]} on the way; why, and what to change: jemstone doctor ill" in out

    assert main(["doctor", "ill", "--figure", "new/d.png"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("verdict: recovered: gap_explosion ")
    assert REASON.replace("the", "The", 1) in out
    assert " --weights.energy_l2 0.3 " in out
    assert out.count("back to step 0") == times
    assert Path("new/d.png").is_file()

    assert main(["report", "ill"]) == 0
    page = Path("ill/report.html").read_text()
    assert f"recovered {['once', '2 times'][times - 1]} by itself" in page
    assert page.split("<h3>What happened</h3>")[1].count("The energies of data and negatives run apart") == times


def test_recoveries_before_giving_up_are_told_and_the_doctor_is_named(failing, capsys):
    failing(3)
    assert main([*ILL, "--recovery.attempts", "2"]) == 1
    out, err = capsys.readouterr()
    assert out.count("Back to step 0") == 2
    assert out.endswith("What happened, why, and what to change: jemstone doctor ill\n")
    assert "Training diverged at step 9: gap_explosion: " in err
    assert main(["doctor", "ill"]) == 0
    assert capsys.readouterr().out.startswith(
        "verdict: diverged: gap_explosion 3 times, last at step 9, trend from step 5"
    )


def test_the_doctor_reads_the_log_of_another_project(here, capsys):
    rows = [f"{i},{-3 - max(0, i - 30) ** 2},{-3 + max(0, i - 30) ** 2}" for i in range(60)]
    Path("theirs.csv").write_text("\n".join(["t,up,down", *rows]))
    columns = "step=t, energy_real=up,energy_negatives=down"
    assert main(["doctor", "theirs.csv", "--columns", columns]) == 0
    out = capsys.readouterr().out
    assert out.startswith("verdict: unhealthy: gap_explosion at step ")
    assert "t as step, up as energy_real, down as energy_negatives" in out
    assert out.endswith("Figure: theirs-doctor.png\n")
    assert Path("theirs-doctor.png").is_file()


def test_a_run_that_cannot_be_written_is_diagnosed_all_the_same(copy, capsys):
    (copy / "doctor.png").mkdir()
    assert main(["doctor", str(copy)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("verdict: ")
    assert "Choose another place with --figure FILE.png" in out


def test_interrupting_says_how_to_go_on(here, capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("jemstone.cli.show_training", interrupted)
    assert main(["train", "classifier-small", "--network", "mlp-4", "--steps", "1", "--run", "s"]) == 130
    out, err = capsys.readouterr()
    assert "jemstone train --resume s" in out
    assert err == "Stopped.\n"


def test_a_console_on_a_file_is_wide_enough_for_two_runs(evaluated):
    line = next(line for line in evaluated.stdout.splitlines() if "ood_mean/near/max_probability/auroc" in line)
    assert line.count("[") == 2
    assert line.count("]") == 2


# Mistakes

TRAIN = ("train", "jem-small", "--steps", "1", *TINY, "--run", "new")
MISTAKES = {
    "no recipe": (("train",), "Name a recipe (classifier, "),
    "settings only": (("train", "--steps", "3"), "Name a recipe"),
    "unknown recipe": (("train", "jem-smal"), "There is no recipe 'jem-smal'. Choose one of: classifier, "),
    "value out of range": ((*TRAIN, "--chains.steps", "0"), "chains.steps must be at least 1 and finite, got 0"),
    "small buffer": ((*TRAIN, "--chains.buffer_size", "5"), "chains.buffer_size 5 is smaller than real_batch_size 16"),
    "unknown network": ((*TRAIN, "--network", "resnet"), "Unknown network 'resnet'. Known names: wrn-DEPTH-WIDTH"),
    "missing data": ((*TRAIN, "--data", "gone.npz"), "There is no file gone.npz"),
    "unknown data": ((*TRAIN, "--data", "mnist"), "The source 'mnist' is neither a known name nor an existing path"),
    "run exists": (("train", "jem-small", "--run", "RUN"), "exists and is not empty. Choose another --run"),
    "run below a file": ((*TRAIN[:-1], "RUN/config.json/new"), "Cannot make a run directory"),
    "resume nothing": (("train", "--resume", "gone"), "There is no run directory at gone"),
    "resume a folder": (("train", "--resume", "."), "is not a run directory: it holds no config.json"),
    "resume with a recipe": (("train", "jem-small", "--resume", "RUN"), "leave out the recipe"),
    "resume with a setting": (("train", "--resume", "RUN", "--steps", "50"), "every other setting"),
    "resume into a run": (("train", "--resume", "RUN", "--run", "other"), "leave out the recipe, --run"),
    "sample nothing": (("sample", "gone"), "There is no run directory at gone"),
    "sample a classifier": (("sample", "CLASSIFIER"), "is a plain classifier"),
    "sample its buffer": (("sample", "CLASSIFIER", "--buffer"), "has no replay buffer: it is a plain classifier"),
    "label too large": (("sample", "RUN", "--label", "10"), "--label must lie in 0 to 9, got 10"),
    "label negative": (("sample", "RUN", "--label", "-1"), "--label must lie in 0 to 9, got -1"),
    "count 0": (("sample", "RUN", "--count", "0"), "--count must be at least 1, got 0"),
    "steps 0": (("sample", "RUN", "--steps", "0"), "at least one step, got steps=0"),
    "steps of the buffer": (("sample", "RUN", "--buffer", "--steps", "3"), "leave out --steps"),
    "a fast buffer": (("sample", "RUN", "--buffer", "--fast"), "leave out --steps and --fast"),
    "no picture": (("sample", "RUN", "--out", "x.txt"), "a name that ends in .png; got x.txt"),
    "unwritable": (("sample", "RUN", "--count=1", "--steps=1", "--out", "RUN/config.json/x.png"), "config.json"),
    "ood without a source": (("evaluate", "RUN", "--ood=letters"), "--ood and --near take NAME=SOURCE, for example"),
    "ood with no source": (("evaluate", "RUN", "--ood", "letters="), "--ood and --near take NAME=SOURCE, for example"),
    "ood alone": (("evaluate", "RUN", "--ood"), "--ood and --near take NAME=SOURCE, for example"),
    "ood before an option": (("evaluate", "RUN", "--ood", "--full"), "--ood and --near take NAME=SOURCE, for example"),
    "ood twice": (("evaluate", "RUN", "--ood", "a=x.npz", "--ood", "a=y.npz"), "--ood and --near name two sets alike"),
    "ood twice at once": (("evaluate", "--ood", "a=x.npz", "a=x.npz", "RUN"), "--ood and --near name two sets alike"),
    "ood without a name": (("evaluate", "RUN", "--ood", "=letters.npz"), "--ood and --near take NAME=SOURCE"),
    "ood missing": (("evaluate", "RUN", "--ood", "letters=gone.npz"), "There is no file gone.npz"),
    "near alone": (("evaluate", "RUN", "--near"), "--ood and --near take NAME=SOURCE"),
    "near and ood alike": (("evaluate", "RUN", "--near", "a=x.npz", "--ood", "a=y.npz"), "name two sets alike"),
    "no such section": (
        ("evaluate", "RUN", "--only", "fid"),
        "There is no section 'fid'; choose from calibration, ood",
    ),
    "no such extractor": (("evaluate", "RUN", "--extractor", "vgg"), "pixels, inception=FILE"),
    "compare nothing": (("compare", "gone"), "gone"),
    "import nothing": (("import", "gone.pt", "--data", "digits", "--out", "x"), "gone.pt: there is no such file"),
    "evaluate nothing": (("evaluate", "gone"), "There is no run directory at gone"),
    "against nothing": (("evaluate", "RUN", "--against", "gone"), "There is no run directory at gone"),
    "report nothing": (("report", "gone"), "gone does not exist"),
    "report a folder": (("report", "."), "error: "),
    "doctor nothing": (("doctor", "gone"), "There is nothing at gone. Give a run directory, or a CSV file"),
    "doctor a folder": (("doctor", "."), "is not a run directory: it holds no config.json"),
    "doctor a file": (("doctor", "RUN/config.json"), "config.json"),
    "doctor, no picture": (("doctor", "RUN", "--figure", "x.pdf"), "a name that ends in .png; got x.pdf"),
    "doctor, unwritable": (("doctor", "RUN", "--figure", "RUN/config.json/x.png"), "config.json"),
    "doctor, columns": (("doctor", "RUN/config.json", "--columns", "loss"), "--columns takes OURS=THEIRS"),
    "doctor, columns of a run": (("doctor", "RUN", "--columns", "loss=l"), "is a directory"),
    "report, unwritable": (("report", "RUN", "--out", "RUN/config.json/x.html"), "config.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_explained(mistake, here, capsys, run, classifier):
    arguments, message = MISTAKES[mistake]
    before = sorted(run.rglob("*"))
    names = [str(part).replace("RUN", str(run)).replace("CLASSIFIER", str(classifier)) for part in arguments]
    assert message in fails(capsys, *names)
    assert list(here.iterdir()) == [], "a mistake leaves nothing behind"
    assert sorted(run.rglob("*")) == before


BROKEN = {
    "unknown.yaml": ("chains: {colour: red}", "chains.colour"),
    "malformed.yaml": ("steps: [1", "config"),
    "list.yaml": ("- 1", "config"),
    "type.yaml": ("steps: three", "steps"),
}
MISUSES = {
    "unknown command": (("frobnicate",), "invalid choice: 'frobnicate'"),
    "unknown option": (("train", "jem-small", "--colour", "red"), "--colour"),
    "wrong type": (("train", "jem-small", "--steps", "three"), "Given value: three"),
    "wrong choice": (("train", "jem-small", "--precision", "bf16"), "bf16-mixed"),
    "no value": (("train", "jem-small", "--steps"), "--steps: expected one argument"),
    "no such file": (("train", "jem-small", "--config", "gone.yaml"), "gone.yaml"),
    "evaluate what": (("evaluate",), "required: evaluate.run"),
    "evaluate two": (("evaluate", "run", "--ood", "a=1", "another"), "unrecognized arguments: another"),
    "sample what": (("sample",), "required: sample.run"),
    "report what": (("report",), "required: report.runs"),
    "doctor what": (("doctor",), "required: doctor.run"),
    "label as text": (("sample", "run", "--label", "cat"), "Given value: cat"),
    **{name: (("train", "jem-small", "--config", name), message) for name, (_, message) in BROKEN.items()},
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuses_are_told(misuse, here, capsys):
    arguments, message = MISUSES[misuse]
    for name, (text, _) in BROKEN.items():
        (here / name).write_text(text)
    err = misused(capsys, *arguments)
    assert message in err
    assert len(err.splitlines()) < 16, "the error must not drown in the usage"


def last_checkpoint(run):
    return sorted((run / "checkpoints").iterdir())[-1]


def goes_on(capsys, run):
    """What standard error says when a run whose newest checkpoint is damaged goes on from the one before."""
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["train", "--resume", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "at step 8 of 12." in out
    assert err.startswith("warning: ")
    assert "Going on from step-00000008.safetensors, the one before." in err
    assert "session.py" not in err
    return err


def test_a_truncated_checkpoint_is_told(copy, capsys):
    path = last_checkpoint(copy)
    content = path.read_bytes()
    for length in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        for command in (("evaluate", copy), ("sample", copy)):
            err = fails(capsys, *command)
            assert path.name in err
            assert "truncated" in err
        assert "truncated" in goes_on(capsys, copy)
        assert path.read_bytes() == content


def test_a_flipped_bit_in_a_tensor_is_told(copy, capsys):
    path = last_checkpoint(copy)
    content = bytearray(path.read_bytes())
    tensors = 8 + int.from_bytes(content[:8], "little")
    for position in (tensors, (tensors + len(content)) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        for command in (("evaluate", copy), ("sample", copy)):
            err = fails(capsys, *command)
            assert "is damaged: its content does not match its digest. Delete it to go on from the checkpoint" in err
        assert "does not match its digest" in goes_on(capsys, copy)
    assert main(["doctor", str(copy)]) == 0
    assert "used the one before it" in " ".join(capsys.readouterr().out.split())


def test_an_earlier_checkpoint_can_indeed_be_used(copy, capsys):
    path = last_checkpoint(copy)
    good = path.read_bytes()
    path.unlink()
    assert main(["train", "--resume", str(copy)]) == 0
    assert path.read_bytes() == good


def test_a_run_without_checkpoints_has_no_model_yet_and_begins_anew_when_resumed(run, copy, capsys):
    shutil.rmtree(copy / "checkpoints")
    for command in (("evaluate", copy), ("sample", copy)):
        err = fails(capsys, *command)
        assert "There is no checkpoint in" in err
        assert f"jemstone train --resume {copy}" in err
    assert main(["train", "--resume", str(copy)]) == 0
    assert "at step 0 of 12." in capsys.readouterr().out
    assert last_checkpoint(copy).read_bytes() == last_checkpoint(run).read_bytes()


@pytest.mark.parametrize("content", ["", "{", '{"format": 99}'])
def test_a_damaged_configuration_is_told(copy, capsys, content):
    (copy / "config.json").write_text(content)
    for command in (("evaluate", copy), ("sample", copy), ("train", "--resume", copy)):
        assert "config.json" in fails(capsys, *command)


def test_other_data_under_the_same_name_is_told(here, capsys):
    rng = np.random.default_rng(0)

    def write(seed):
        images = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
        np.savez("set.npz", train_images=images, train_labels=np.arange(40) % 2, test_images=images,
                 test_labels=np.arange(40) % 2)  # fmt: skip

    write(0)
    tiny = ["--network", "mlp-4", "--steps", "1"]
    assert main(["train", "classifier-small", "--data", "set.npz", *tiny, "--run", "run"]) == 0
    write(1)
    assert "digest differs" in fails(capsys, "evaluate", "run")
    assert "digest differs" in fails(capsys, "train", "--resume", "run")


def test_the_table_shows_names_as_they_are(evaluated, run, capsys):
    plain_console().print(results_table({"[red]x": read_results(run)}))
    assert "[red]x" in capsys.readouterr().out
