"""Requests that arrive together are computed together, in their order, and none is lost or mixed up."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
import torch

from jemstone.deployment.calibration import Thresholds
from jemstone.deployment.predictor import Predictions
from jemstone.deployment.serve.batching import Batcher, split
from jemstone.deployment.serve.refusal import Refused
from jemstone.deployment.serve.settings import ServeSettings


class Model:
    """Answers an input with itself as its log density, once it may."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.may = Event()
        self.may.set()
        self.began = Event()

    def __call__(self, x):
        self.began.set()
        assert self.may.wait(30)
        self.batches.append(len(x))
        if bool((x < 0).any()):
            raise RuntimeError("negative")
        values = x.double().numpy()[:, 0]
        return Predictions(("a", "b"), np.full((len(x), 2), 0.5), values, values, Thresholds(0.0, 0.0, 0.0))


def serve(scenario, **settings):
    """Run `scenario(batcher, model)` beside the batcher's worker; returns the model, and what it returned."""

    async def together():
        model = Model()
        with ThreadPoolExecutor(1) as executor:
            told = []
            batcher = Batcher(model, ServeSettings(**{"max_inputs": 4, **settings}), executor, told.append)
            worker = asyncio.create_task(batcher.work())
            try:
                result = await scenario(batcher, model)
            finally:
                model.may.set()
                worker.cancel()
        assert told == model.batches
        return model, result

    return asyncio.run(together())


def request(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


async def blocked(batcher, model):
    """The model is busy with an input of its own; whatever comes now waits."""
    model.may.clear()
    first = asyncio.create_task(batcher.submit(request(100)))
    while not model.began.is_set():
        await asyncio.sleep(0)
    return first


def test_what_waits_is_computed_at_once_and_everybody_gets_their_own():
    async def scenario(batcher, model):
        first = await blocked(batcher, model)
        sizes = [1, 3, 2, 1, 4, 1]
        ends = np.cumsum(sizes)
        asked = [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        tasks = [asyncio.create_task(batcher.submit(request(*values))) for values in asked]
        await asyncio.sleep(0)
        assert batcher.length == sum(sizes)
        model.may.set()
        found = await asyncio.gather(*tasks)
        assert [list(one.log_density) for one in found] == [list(values) for values in asked]
        await first
        return sizes

    model, _ = serve(scenario, max_batch=6)
    assert model.batches == [1, 6, 6], "the first alone, then 1 + 3 + 2 and 1 + 4 + 1"


def test_a_request_of_more_than_a_batch_is_one():
    async def scenario(batcher, model):
        first = await blocked(batcher, model)
        tasks = [asyncio.create_task(batcher.submit(request(*values))) for values in ([1], [2, 3, 4, 5], [6])]
        await asyncio.sleep(0)
        model.may.set()
        await asyncio.gather(first, *tasks)

    model, _ = serve(scenario, max_batch=2)
    assert model.batches == [1, 1, 4, 1]


def test_the_first_of_a_batch_waits_for_others_until_it_is_full():
    async def scenario(batcher, model):
        return await asyncio.gather(*(batcher.submit(request(i)) for i in range(3)))

    model, found = serve(scenario, max_batch=3, max_wait_ms=1e7)
    assert model.batches == [3]
    assert [one.log_density[0] for one in found] == [0, 1, 2]


def test_the_first_of_a_batch_does_not_wait_for_ever():
    async def scenario(batcher, model):
        return await batcher.submit(request(7))

    _, found = serve(scenario, max_batch=3, max_wait_ms=1.0)
    assert list(found.log_density) == [7]


def test_a_full_queue_refuses_and_says_when_to_come_again():
    async def scenario(batcher, model):
        first = await blocked(batcher, model)
        waiting = asyncio.create_task(batcher.submit(request(1, 2, 3)))
        await asyncio.sleep(0)
        with pytest.raises(Refused) as refused:
            await batcher.submit(request(4, 5))
        fits = asyncio.create_task(batcher.submit(request(6)))
        model.may.set()
        await asyncio.gather(first, waiting, fits)
        return refused.value

    _, error = serve(scenario, queue=4)
    assert error.status == 429
    assert int(error.headers["Retry-After"]) >= 1
    assert "3 inputs wait already" in error.message


def test_a_request_that_is_given_up_leaves_the_queue():
    async def scenario(batcher, model):
        first = await blocked(batcher, model)
        kept = asyncio.create_task(batcher.submit(request(1)))
        given_up = asyncio.create_task(batcher.submit(request(2, 3)))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        assert batcher.length == 1
        model.may.set()
        await asyncio.gather(first, kept)

    model, _ = serve(scenario)
    assert model.batches == [1, 1]


def test_one_that_is_given_up_while_it_is_computed_hurts_nobody():
    async def scenario(batcher, model):
        first = await blocked(batcher, model)
        first.cancel()
        model.may.set()
        return await batcher.submit(request(5))

    _, found = serve(scenario)
    assert list(found.log_density) == [5]


def test_a_fault_of_the_model_is_told_and_the_next_batch_is_served():
    async def scenario(batcher, model):
        with pytest.raises(RuntimeError, match="negative"):
            await batcher.submit(request(-1))
        return await batcher.submit(request(5))

    _, found = serve(scenario)
    assert list(found.log_density) == [5]


def test_parts_of_predictions_keep_their_rows(predictor):
    x = torch.linspace(-1, 1, 6 * 64).view(6, 1, 8, 8)
    whole = predictor.predict(x)
    parts = split(whole, [1, 3, 2])
    assert [one for part in parts for one in part] == list(whole)
    assert [len(part) for part in parts] == [1, 3, 2]
