"""A model handed on: the slim copy, the hub (a fake one: there is no network here), and what goes wrong."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from jemstone import Session, evaluate_run, load_dataset, load_trained, recipe
from jemstone.cli import main
from jemstone.data.dataset import Dataset
from jemstone.deployment.hub import FILES, download
from jemstone.deployment.predictor import Predictor
from jemstone.deployment.saving import without_paths
from jemstone.errors import CheckpointError, ConfigError, DataError, RunError
from jemstone.evaluation import BUDGETS
from jemstone.sampling import ClassGaussian

X = load_dataset("digits").test.inputs[:20]


@pytest.fixture(scope="module")
def saved(predictor, tmp_path_factory) -> Path:
    return predictor.save(tmp_path_factory.mktemp("saved") / "digits-jem")


def test_a_saved_model_is_a_run_that_says_the_same(predictor, saved, digits_run):
    again = Predictor.load(saved)
    assert again.thresholds == predictor.thresholds
    ours, theirs = predictor.predict(X), again.predict(X)
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
    np.testing.assert_array_equal(ours.typicality, theirs.typicality)
    labels = torch.arange(4)
    assert torch.equal(load_trained(saved).sample(labels, steps=3), predictor.trained.sample(labels, steps=3))
    found = evaluate_run(saved, protocol=BUDGETS["quick"].only("calibration"))
    truth = predictor.trained.logits(load_dataset("digits").test.inputs).argmax(dim=1)
    accuracy = (truth == load_dataset("digits").test.labels).double().mean().item()
    assert next(row.value for row in found if row.name == "accuracy") == pytest.approx(accuracy)
    shutil.rmtree(saved / "evaluation", ignore_errors=True)


def test_it_holds_no_more_than_it_must(saved, predictor, tmp_path):
    files = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    files -= {"results.json", "figures.json"}
    assert files == {"config.json", "README.md", "calibration.safetensors", "checkpoints/step-00000060.safetensors"}
    weights = sum(value.nbytes for value in predictor.trained.model.state_dict().values())
    assert (saved / "checkpoints" / "step-00000060.safetensors").stat().st_size < weights + 4000
    assert load_trained(saved).buffer is None
    kept = load_trained(predictor.save(tmp_path / "with chains", buffer=True)).buffer
    assert torch.equal(kept, predictor.trained.buffer)


def test_it_cannot_be_resumed_and_says_so(saved):
    with pytest.raises(CheckpointError, match="handed on"):
        Session.resume(saved)


def test_where_it_goes_must_be_free(saved, predictor):
    with pytest.raises(RunError, match="not empty"):
        predictor.save(saved)


def small_images(folder: Path) -> Path:
    """A data set in a file: 3 classes of 6x6 images."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    images = rng.integers(0, 80, (300, 6, 6)).astype(np.uint8)
    for label in range(3):
        images[labels == label, 2 * label : 2 * label + 2] += 150
    path = folder / "own images.npz"
    names = np.array(["and /or", "b", "c"])
    arrays = {"train_images": images[:240], "train_labels": labels[:240]}
    np.savez(path, **arrays, test_images=images[240:], test_labels=labels[240:], class_names=names)
    return path


@pytest.fixture(scope="module")
def of_a_file(tmp_path_factory) -> Path:
    """A run that was trained on a file, its chains from class Gaussians."""
    folder = tmp_path_factory.mktemp("secret place")
    config = recipe("jemstone-small").with_values(
        steps=3, data={"source": str(small_images(folder)), "validation": 0.2}, network={"name": "conv-4"}
    )
    config = config.with_values(chains={"steps": 1, "buffer_size": 64, "start": "gaussian"}, precision="32-true")
    for _ in Session.start(config, run=folder / "run").train():
        pass
    return folder / "run"


def test_no_path_of_the_machine_is_handed_on(of_a_file, tmp_path, monkeypatch):
    out = Predictor.load(of_a_file).save(tmp_path / "copy")
    for file in (path for path in out.rglob("*") if path.is_file()):
        assert b"secret place" not in file.read_bytes(), file
        assert str(tmp_path.parent).encode() not in file.read_bytes(), file
    assert json.loads((out / "config.json").read_text())["config"]["data"]["source"] == "own images.npz"
    assert load_trained(out).class_names == ("and /or", "b", "c")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"published without its data, own images.*data=load_dataset\(SOURCE, val"):
        evaluate_run(out)
    assert main(["evaluate", str(out)]) == 1
    given = load_dataset(str(of_a_file.parent / "own images.npz"), validation=0.2)
    assert evaluate_run(out, data=given, protocol=BUDGETS["quick"].only("calibration"))
    monkeypatch.chdir(of_a_file.parent)  # which holds a file of that name
    assert evaluate_run(out, protocol=BUDGETS["quick"].only("calibration"))
    np.savez(tmp_path / "own images.npz", **other_images(given))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="digest differs"):
        evaluate_run(out)


def other_images(data: Dataset) -> dict[str, np.ndarray]:
    images, labels = data.train.inputs.numpy()[:, :, ::-1], data.train.labels.numpy()
    return {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}


def test_chains_start_where_they_did(of_a_file, tmp_path):
    out = Predictor.load(of_a_file).save(tmp_path / "copy")
    ours, theirs = load_trained(of_a_file).initial(), load_trained(out).initial()
    assert torch.equal(ours.factor, theirs.factor)  # 36 directions are few
    assert torch.equal(ours.mean, theirs.mean)


def test_a_reduced_gaussian_keeps_variances_and_the_leading_directions():
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 5.0, *[0.3] * 10])
    whole = ClassGaussian.fit(x, torch.arange(400) % 2, 2, box=None)
    reduced = whole.reduced(2)
    assert reduced.factor.shape == (2, 12, 2)
    assert whole.reduced(12) is whole
    for label in range(2):
        before = whole.factor[label] @ whole.factor[label].T
        after = reduced.factor[label] @ reduced.factor[label].T + reduced.residual[label].square().diag()
        torch.testing.assert_close(after.diagonal(), before.diagonal())
        assert (after - before).norm() < 0.02 * before.norm()
    assert torch.equal(reduced.mean, whole.mean)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("digits", "digits"),
        ("hf:owner/name", "hf:owner/name"),
        ("/home/me and you/a set.npz", "a set.npz"),
        ("C:\\Users\\me\\set.npz", "set.npz"),
        ("/data/folder/", "folder"),
        ("py:/home/me/nets.py:small", "py:nets.py:small"),
        ("jemstone train jem --data=/home/me/x.npz --run ../there/run", "jemstone train jem --data=x.npz --run run"),
        ("wrn-28-10", "wrn-28-10"),
    ],
)
def test_of_a_path_the_last_part_is_left(text, left):
    assert without_paths({"a": [text, 1, None]}) == {"a": [left, 1, None]}


def test_a_path_with_spaces_is_recognised_in_the_command():
    info = {"source": "/home/me and you/x.npz", "command": "jemstone train jem --data /home/me and you/x.npz"}
    assert without_paths(info)["command"] == "jemstone train jem --data x.npz"


def test_a_definition_is_no_path():
    definition = {"arguments": {"id2label": {"0": 'say "hi"', "1": "été"}, "file": "/home/me/x.json"}, "size": None}
    kept = without_paths({"network": {"definition": json.dumps(definition), "name": "hf:vit"}})["network"]
    definition["arguments"]["file"] = "x.json"
    assert json.loads(kept["definition"]) == definition
    assert without_paths({"definition": ""}) == {"definition": ""}


class Hub:
    """The hub as two folders deep: OWNER/NAME; what it is asked for is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[tuple[str, dict[str, object]]] = []

    def api(self, token=None):
        self.asked.append(("token", {"token": token}))
        return self

    def create_repo(self, repo_id, **options):
        self.asked.append((repo_id, options))
        (self.folder / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, delete_patterns, commit_message):
        target = self.folder / repo_id
        for pattern in delete_patterns:
            for path in target.glob(pattern):
                path.unlink()
        for pattern in allow_patterns:
            for path in Path(folder_path).glob(pattern):
                (target / path.relative_to(folder_path)).parent.mkdir(exist_ok=True)
                shutil.copy(path, target / path.relative_to(folder_path))

    def snapshot_download(self, repo_id, *, revision, token, allow_patterns):
        self.asked.append((repo_id, {"revision": revision, "token": token, "allow": allow_patterns}))
        if not (self.folder / repo_id).exists():
            raise missing(repo_id)
        return str(self.folder / repo_id)


def missing(repo_id):
    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    Exception.__init__(error, f"404: {repo_id}")
    return error


@pytest.fixture
def hub(tmp_path, monkeypatch):
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", found.api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def test_pushed_and_fetched_it_is_the_same(predictor, hub, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    repository = hub.folder / "me" / "digits"
    (repository / "checkpoints").mkdir(parents=True)
    (repository / "checkpoints" / "step-00009999.safetensors").write_text("of an earlier push")
    (repository / "mine.txt").write_text("not ours to delete")
    assert predictor.push_to_hub("me/digits", private=True, token="t", license="mit") == "https://hub/me/digits"
    assert ("token", {"token": "t"}) in hub.asked
    assert ("me/digits", {"private": True, "exist_ok": True}) in hub.asked
    assert (repository / "mine.txt").exists()
    for again in (Predictor.load("me/digits"), Predictor.from_pretrained("me/digits", revision="main", token="t")):
        assert again.thresholds == predictor.thresholds
        np.testing.assert_array_equal(again.predict(X).log_density, predictor.predict(X).log_density)
    assert hub.asked[-1] == ("me/digits", {"revision": "main", "token": "t", "allow": list(FILES)})
    assert not any(pattern in ("*", "*.py", "**") or pattern.endswith((".py", ".bin", ".pt")) for pattern in FILES)
    assert 'Predictor.load("me/digits")' in (repository / "README.md").read_text()


def test_what_is_no_model_on_the_hub(hub, monkeypatch):
    with pytest.raises(RunError, match=r"no model me/nothing .* private or gated"):
        Predictor.load("me/nothing")
    other = hub.folder / "me" / "bert"
    other.mkdir(parents=True)
    with pytest.raises(RunError, match="holds no jemstone model"):
        download("me/bert")
    (other / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(RunError, match="holds no jemstone model"):
        download("me/bert")

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no network, and nothing in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(RunError, match=r"Cannot fetch me/digits.*no network"):
        Predictor.load("me/digits")


def test_code_that_a_downloaded_model_names_is_not_run(predictor, hub):
    predictor.push_to_hub("me/digits")
    path = hub.folder / "me" / "digits" / "config.json"
    info = json.loads(path.read_text())
    info["config"]["network"]["name"] = "py:nets.py:small"
    path.write_text(json.dumps(info))
    with pytest.raises(ConfigError, match="runs no code"):
        Predictor.load("me/digits")


def test_without_a_network_the_cached_copy_will_do(predictor, saved, tmp_path, monkeypatch):
    """The real client, on a cache as it leaves one."""
    cache, commit = tmp_path / "models--me--digits", "0" * 40
    shutil.copytree(saved, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert Predictor.load("me/digits").thresholds == predictor.thresholds
    with pytest.raises(RunError, match="Cannot fetch me/another"):
        Predictor.load("me/another")


def test_a_hub_that_refuses_is_quoted(predictor, hub, monkeypatch):
    def refuse(*_, **__):
        raise OSError("403 Forbidden")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(RunError, match=r"Cannot push to me/digits: 403 Forbidden.*token"):
        predictor.push_to_hub("me/digits")


def test_the_command(digits_run, hub, tmp_path, capsys):
    run = str(digits_run.path)
    assert main(["publish", run, "--out", str(tmp_path / "copy"), "--license", "mit", "--rejection", "0.2"]) == 0
    assert "README.md" in capsys.readouterr().out
    assert Predictor.load(tmp_path / "copy").policy.rejection == 0.2
    assert main(["publish", run, "--hub", "me/digits", "--private"]) == 0
    assert "https://hub/me/digits" in capsys.readouterr().out
    assert ("me/digits", {"private": True, "exist_ok": True}) in hub.asked
    for wrong in ([], ["--out", "a", "--hub", "b/c"], ["--out", "a", "--private"]):
        assert main(["publish", run, *wrong]) == 1
        assert "--out" in capsys.readouterr().err
