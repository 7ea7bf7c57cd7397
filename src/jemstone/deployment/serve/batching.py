"""Requests that arrive together are computed together: one queue, one worker, one run of the model for many."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from jemstone.deployment.predictor import Predictions
from jemstone.deployment.serve.refusal import busy
from jemstone.deployment.serve.settings import ServeSettings


@dataclass(eq=False)
class _Waiting:
    x: Float[Tensor, "n ..."]
    found: asyncio.Future[Predictions]
    since: float


@dataclass
class Batcher:
    """Runs `predict` in `executor` on up to max_batch inputs at a time, in the order in which they came.

    While the model computes, requests gather, and the next run takes them all: at saturation batches fill by
    themselves, and an idle model starts at once. `max_wait_ms` makes the first of a batch wait for others. A request
    is never divided; one of more than max_batch inputs is a batch of its own.
    """

    predict: Callable[[Float[Tensor, "n ..."]], Predictions]
    settings: ServeSettings
    executor: Executor
    on_batch: Callable[[int], None]
    """Is told the inputs of each batch."""
    waiting: deque[_Waiting] = field(default_factory=deque)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _seconds_an_input: float = 0.01

    @property
    def length(self) -> int:
        """Inputs in the queue."""
        return sum(len(one.x) for one in self.waiting)

    async def submit(self, x: Float[Tensor, "n ..."]) -> Predictions:
        """What the model says of `x`. Refused, busy, where the queue is full; cancelled, it leaves the queue."""
        length = self.length
        if length + len(x) > self.settings.queue:
            seconds = max(1, math.ceil(length * self._seconds_an_input))
            raise busy(f"{length} inputs wait already, and at most {self.settings.queue} may.", seconds)
        loop = asyncio.get_running_loop()
        one = _Waiting(x, loop.create_future(), loop.time())
        self.waiting.append(one)
        self._arrived.set()
        try:
            return await one.found
        finally:
            if one in self.waiting:
                self.waiting.remove(one)

    async def work(self) -> None:
        """Serve the queue until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._gather(loop)
            batch = self._take()
            if not batch:
                continue
            sizes = [len(one.x) for one in batch]
            began = loop.time()
            self.on_batch(sum(sizes))
            try:
                x = torch.cat([one.x for one in batch])
                found = await loop.run_in_executor(self.executor, self._run, x, sizes)
            except Exception as error:  # the model's, which each of them is told and none is to blame for
                for one in batch:
                    if not one.found.done():
                        one.found.set_exception(error)
                continue
            self._seconds_an_input += 0.2 * ((loop.time() - began) / sum(sizes) - self._seconds_an_input)
            for one, part in zip(batch, found, strict=True):
                if not one.found.done():
                    one.found.set_result(part)

    async def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until there is something, and then until there is a full batch or the first has waited long enough."""
        while not self.waiting:
            self._arrived.clear()
            await self._arrived.wait()
        until = self.waiting[0].since + self.settings.max_wait_ms / 1000
        while self.length < self.settings.max_batch and (left := until - loop.time()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self.waiting and (not batch or size + len(self.waiting[0].x) <= self.settings.max_batch):
            one = self.waiting.popleft()
            if not one.found.done():
                batch.append(one)
                size += len(one.x)
        return batch

    def _run(self, x: Float[Tensor, "n ..."], sizes: list[int]) -> list[Predictions]:
        return split(self.predict(x), sizes)


def split(found: Predictions, sizes: list[int]) -> list[Predictions]:
    """Predictions of several requests, each request's apart."""
    ends = list(accumulate(sizes))
    return [found.rows(end - size, end) for size, end in zip(sizes, ends, strict=True)]
