"""On a local Ray, two workers write the file that one process writes."""

import io

import numpy as np
import pytest
from PIL import Image

from jemstone import load_dataset
from jemstone.data.images import to_uint8
from jemstone.deployment.bulk import score
from jemstone.deployment.bulk_parts import manifest_of
from jemstone.deployment.bulk_ray import Scorer, _cause
from jemstone.deployment.bulk_sources import open_source
from jemstone.errors import ConfigError, RunError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'jemstone[ray]'")
pytest.importorskip("ray.data", reason="Ray Data is not installed: pip install 'jemstone[ray]'")
SMALL = {"part_rows": 40, "batch_size": 16}


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """PNG files, one of them broken, in a Parquet file of several row groups."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    images = []
    for pixels in to_uint8(load_dataset("digits").test.inputs)[:150, ..., 0]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        images.append(file.getvalue())
    images[77] = b"broken"
    path = tmp_path_factory.mktemp("ray") / "images.parquet"
    parquet.write_table(pa.table({"image": images}), path, row_group_size=64)
    return path


def test_two_workers_write_what_one_process_writes(cluster, predictor, source, tmp_path):
    local, shared = tmp_path / "local.parquet", tmp_path / "ray.parquet"
    told = []
    summary = score(predictor, source, local, **SMALL)
    assert summary.errors == 1

    def stop(done, rows):
        if done > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # in this process, when the first part was written
        score(predictor, source, shared, on_progress=stop, **SMALL)

    def tell(*numbers):
        told.append(numbers)

    assert score(predictor, source, shared, engine="ray", workers=2, on_progress=tell, **SMALL) == summary
    assert shared.read_bytes() == local.read_bytes()
    assert ray.is_initialized(), "a Ray that was running is left alone"
    assert len(told) == 3, "the first part was there already"
    assert told[-1] == (150, 150)


def test_a_worker_that_finds_another_model_says_so(predictor, source):
    run, trained = predictor.trained.run.path, predictor.trained
    manifest = manifest_of(predictor, open_source(source), 40) | {"model": "of the process that started it"}
    with pytest.raises(RunError, match="another model") as caught:
        Scorer(str(run), predictor.policy, trained.execution, "cpu", str(source), manifest, 16, 1)
    wrapped = RuntimeError("an actor died")
    wrapped.__cause__ = ray.exceptions.RayTaskError("scorer", "its traceback", caught.value)
    assert _cause(wrapped) is caught.value
    assert "an actor died" in str(_cause(RuntimeError("an actor died")))


def test_a_network_of_ones_own_stays_in_its_process(predictor, source, tmp_path, monkeypatch):
    monkeypatch.setattr("jemstone.deployment.bulk_ray.CUSTOM", predictor.trained.config.network.name)
    with pytest.raises(ConfigError, match="your own network"):
        score(predictor, source, tmp_path / "scores.parquet", engine="ray", **SMALL)
    assert np.all([path.suffix != ".parquet" for path in tmp_path.iterdir()])
