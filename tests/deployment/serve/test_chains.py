"""Samples and counterfactuals: what the run itself draws, bounded, and apart from predictions."""

import asyncio
import base64
import io
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image

from jemstone.data.images import to_uint8
from jemstone.deployment.predictor import Predictor
from jemstone.deployment.serve.chains import Chains
from jemstone.deployment.serve.refusal import Refused
from jemstone.deployment.serve.settings import ServeSettings
from jemstone.rng import generator
from jemstone.sampling.conditioned import counterfactual

SAMPLE, CHANGE = "/v1/sample", "/v1/counterfactual"


def pixels(answer):
    head, _, text = answer["image"].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_samples_are_those_of_the_run(client, predictor):
    expected = to_uint8(predictor.trained.sample(torch.tensor([3, 0, 3]), by_class=True, steps=4, seed=7).clamp(-1, 1))[
        :, :, :, 0
    ]
    answer = client.post(SAMPLE, json={"labels": [3, "0"], "count": 3, "steps": 4, "seed": 7}).json()
    assert (answer["steps"], answer["seed"], answer["model"]["step"]) == (4, 7, 60)
    assert [one["label"] for one in answer["samples"]] == ["3", "0", "3"]
    for one, image in zip(answer["samples"], expected, strict=True):
        np.testing.assert_array_equal(pixels(one), image)
        assert one["prediction"]["label"] in [str(i) for i in range(10)]


def test_samples_of_the_marginal_are_of_no_class_and_differ(client):
    answers = [client.post(SAMPLE, json={"count": 2, "steps": 2}).json() for _ in range(2)]
    assert [one["label"] for one in answers[0]["samples"]] == [None, None]
    assert answers[0]["seed"] != answers[1]["seed"]
    assert len(client.post(SAMPLE, json={"steps": 1}).json()["samples"]) == 8
    picture = client.post(SAMPLE, json={"count": 2, "steps": 1}, headers={"Accept": "image/png"})
    assert picture.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(picture.content)).format == "PNG"


def test_counterfactuals_are_chains_toward_each_class(client, predictor):
    image = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    x = predictor.read(image)
    trained = predictor.trained
    moved = counterfactual(
        trained.model,
        trained.sampler,
        x.expand(2, 1, 8, 8).contiguous(),
        torch.tensor([1, 4]),
        6,
        generator(5, "counterfactual"),
        radius=1.5,
    )
    asked = {"input": image.tolist(), "labels": ["1", 4], "steps": 6, "radius": 1.5, "seed": 5}
    answer = client.post(CHANGE, json=asked).json()
    np.testing.assert_array_equal(pixels(answer["original"]), image)
    assert (answer["steps"], answer["radius"], answer["seed"]) == (6, 1.5, 5)
    assert [one["label"] for one in answer["changed"]] == ["1", "4"]
    for one, end in zip(answer["changed"], to_uint8(moved.clamp(-1, 1)), strict=True):
        np.testing.assert_array_equal(pixels(one), end[:, :, 0])
    found = predictor.predict(moved)
    assert [one["prediction"]["label"] for one in answer["changed"]] == found.labels


@pytest.mark.parametrize(
    ("path", "asked", "status", "says"),
    [
        (SAMPLE, {"labels": [10]}, 422, "10 is no class"),
        (SAMPLE, {"labels": ["ten"]}, 422, "'ten' is no class"),
        (SAMPLE, {"labels": []}, 422, "at least 1"),
        (SAMPLE, {"count": 9}, 422, "count is 9; at most 8"),
        (SAMPLE, {"labels": [0] * 9}, 422, "labels is 9"),
        (SAMPLE, {"steps": 101}, 422, "steps is 101; at most 100"),
        (SAMPLE, {"steps": 0}, 422, "steps"),
        (SAMPLE, {"seed": -1}, 422, "seed"),
        (CHANGE, {"input": [[0.5]]}, 422, "labels"),
        (CHANGE, {"input": [[0.5]], "labels": [0] * 9}, 422, "number of labels is 9"),
        (CHANGE, {"input": [[0.5]], "labels": [0], "radius": 1e-3}, 422, "must be above"),
        (CHANGE, {"input": "no", "labels": [0]}, 422, "input 0 is not base64"),
    ],
)
def test_what_is_not_drawn(serving, path, asked, status, says):
    answer = serving(settings=ServeSettings(max_samples=8, max_steps=100)).post(path, json=asked)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["message"]


def test_a_plain_classifier_says_that_it_has_none(predictor, serving):
    trained = predictor.trained
    plain = replace(trained, config=trained.config.with_values(weights={"marginal": 0.0, "class_nll": 1.0}))
    client = serving(Predictor(plain, predictor.calibration))
    for path in (SAMPLE, CHANGE):
        answer = client.post(path, json={})
        assert (answer.status_code, answer.json()["error"]) == (409, "not_generative")
        assert "plain classifier" in answer.json()["message"]
    facts = client.get("/v1/model").json()
    assert (facts["generative"], facts["sampling"]) == (False, None)


def test_few_may_wait_and_one_that_left_is_never_begun(predictor):
    async def scenario():
        chains = Chains(predictor, ServeSettings(chain_queue=1))
        may, begun = Event(), []

        def work(i):
            begun.append(i)
            return may.wait(30) and i

        running = asyncio.create_task(chains.run(lambda: work(1)))
        while not begun:
            await asyncio.sleep(0)
        waiting = asyncio.create_task(chains.run(lambda: work(2)))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await chains.run(lambda: work(3))
        assert refused.value.status == 429
        assert "Retry-After" in refused.value.headers
        waiting.cancel()
        await asyncio.wait({waiting})
        last = asyncio.create_task(chains.run(lambda: work(4)))
        await asyncio.sleep(0)
        may.set()
        assert await asyncio.gather(running, last) == [1, 4]
        assert begun == [1, 4]
        assert chains.pending == 0
        chains.executor.shutdown()

    asyncio.run(scenario())


def test_one_that_left_while_it_ran_holds_its_place_and_nothing_piles_up_behind_it(predictor):
    """Or clients that ask and leave would fill the memory with what they asked for."""

    async def scenario():
        chains = Chains(predictor, ServeSettings(chain_queue=1))
        may, begun = Event(), Event()

        def work():
            begun.set()
            return may.wait(30)

        left = asyncio.create_task(chains.run(work))
        while not begun.is_set():
            await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait({left})
        for _ in range(5):
            other = asyncio.create_task(chains.run(work))
            await asyncio.sleep(0)
            assert chains.pending == 2
            other.cancel()
            await asyncio.wait({other})
        assert chains.pending == 1
        assert chains.executor._work_queue.qsize() == 0
        last = asyncio.create_task(chains.run(lambda: "last"))
        await asyncio.sleep(0)
        may.set()
        assert await last == "last"
        assert chains.pending == 0
        chains.executor.shutdown()

    asyncio.run(scenario())


def test_more_labels_than_samples_are_refused(client):
    for path, body in ((SAMPLE, {"count": 1}), (CHANGE, {"input": [[0.5]]})):
        answer = client.post(path, json={**body, "labels": ["1"] * 65, "steps": 1})
        assert (answer.status_code, answer.json()["error"]) == (422, "invalid_input")
        assert "number of labels is 65" in answer.json()["message"]


def test_predictions_do_not_wait_for_chains(serving, monkeypatch, predictor):
    """While a chain stands still, predictions are made; its model is another one."""
    client = serving()
    may, begun = Event(), Event()

    def still(self, *arguments, **options):
        assert self.model is not predictor.trained.model
        begun.set()
        assert may.wait(30)
        return torch.zeros(1, 1, 8, 8)

    monkeypatch.setattr(type(predictor.trained), "sample", still)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        sampling = pool.submit(client.post, SAMPLE, json={"count": 1, "steps": 1})
        assert begun.wait(30)
        assert client.post("/v1/predict", json={"inputs": [[[0.5]]]}).status_code == 200
        may.set()
        assert sampling.result().status_code == 200
