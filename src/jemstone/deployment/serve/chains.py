"""Samples and counterfactuals: slow, so they have a thread, a copy of the model and a short queue of their own."""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from jemstone.deployment.predictor import Predictor
from jemstone.deployment.serve.answers import CounterfactualAnswer, SampleAnswer, image_answers
from jemstone.deployment.serve.facts import COUNTERFACTUAL_STEPS, RADIUS, generative, name_of
from jemstone.deployment.serve.refusal import Refused, busy
from jemstone.deployment.serve.requests import CounterfactualRequest, SampleRequest
from jemstone.deployment.serve.settings import ServeSettings
from jemstone.rng import generator
from jemstone.sampling.conditioned import counterfactual

SAMPLES = 8
RETRY_SECONDS = 5
Answer = TypeVar("Answer")


class Chains:
    """One request at a time, `chain_queue` more in line, the others are refused as busy."""

    def __init__(self, predictor: Predictor, settings: ServeSettings) -> None:
        self.settings = settings
        self.name = name_of(predictor)
        self.pending = 0
        self._free = asyncio.Lock()
        self.executor = ThreadPoolExecutor(1, "chains")
        self.generative = generative(predictor)
        trained = predictor.trained
        if self.generative:  # a copy: chains switch modes and statistics of the model that they run on
            trained = replace(trained, model=copy.deepcopy(trained.model))
        self.predictor = Predictor(trained, predictor.calibration, predictor.policy, predictor.moments)

    async def run(self, work: Callable[[], Answer]) -> Answer:
        """`work` in the thread of chains; one that is cancelled before it began is never begun.

        One that is cancelled later runs on, and holds its place until it ends: the thread is not free before.
        """
        if self.pending > self.settings.chain_queue:
            raise busy(f"{self.pending} requests for chains are being served or wait.", RETRY_SECONDS)
        self.pending += 1
        try:
            await self._free.acquire()  # the executor's own queue would keep what clients who left had asked for
        except asyncio.CancelledError:
            self.pending -= 1
            raise
        running = asyncio.get_running_loop().run_in_executor(self.executor, work)
        running.add_done_callback(self._ended)
        return await asyncio.shield(running)

    def _ended(self, running: asyncio.Future[Any]) -> None:
        self.pending -= 1
        self._free.release()
        if not running.cancelled():
            running.exception()  # seen, should nobody be left to see it

    def require(self) -> None:
        """Raises Refused where the model has no images to draw."""
        if not self.generative:
            raise Refused(
                "not_generative",
                "This model has no density of images to draw from: it is a plain classifier, trained without chains, "
                "or a model of vectors. Serve a generative run, for example of the recipe jem-small.",
            )

    def samples(self, asked: SampleRequest) -> tuple[SampleAnswer, Float[Tensor, "n c h w"]]:
        """Fresh samples, as an answer and as images."""
        trained = self.predictor.trained
        labels = None if asked.labels is None else self._labels(asked.labels)
        count = asked.count or (min(SAMPLES, self.settings.max_samples) if labels is None else len(labels))
        self._check("count", count, self.settings.max_samples)
        steps = self._steps(asked.steps, trained.chain_life)
        seed = _seed(asked.seed)
        classes = range(len(trained.class_names)) if labels is None else labels
        y = torch.tensor([classes[i % len(classes)] for i in range(count)])
        images = trained.sample(y, by_class=labels is not None, steps=steps, seed=seed)
        names = [None if labels is None else trained.class_names[i] for i in y.tolist()]
        shown = image_answers(images, names, self.predictor.predict(images))
        return SampleAnswer(self.name, steps, seed, shown), images

    def counterfactuals(self, asked: CounterfactualRequest, x: Float[Tensor, "1 c h w"]) -> CounterfactualAnswer:
        """`x`, moved toward each label."""
        trained = self.predictor.trained
        labels = self._labels(asked.labels)
        steps = self._steps(asked.steps, COUNTERFACTUAL_STEPS)
        radius = RADIUS if asked.radius is None else asked.radius
        step_size = trained.config.chains.step_size
        if not step_size < 2 * radius**2:
            raise Refused(
                "invalid_input",
                f"radius is {radius:g}: with the step size of this model ({step_size:g}) it must be above "
                f"{(step_size / 2) ** 0.5:.3g}, or chains swing ever wider around the image.",
            )
        seed = _seed(asked.seed)
        rng = generator(seed, "counterfactual", device=trained.device)
        y = torch.tensor(labels, device=trained.device)
        start = x.to(trained.device).expand(len(labels), *x.shape[1:]).contiguous()
        moved = counterfactual(trained.model, trained.sampler, start, y, steps, rng, radius=radius).cpu()
        if not bool(moved.isfinite().all()):
            raise Refused("invalid_input", "The chains left for infinity: ask for a larger radius or fewer steps.")
        found = self.predictor.predict(torch.cat([x, moved]))
        names = [None, *(trained.class_names[i] for i in labels)]
        original, *changed = image_answers(torch.cat([x, moved]), names, found)
        return CounterfactualAnswer(self.name, steps, radius, seed, original, changed)

    def _labels(self, labels: Sequence[int | str]) -> list[int]:
        self._check("the number of labels", len(labels), self.settings.max_samples)
        names = self.predictor.trained.class_names
        found = []
        for label in labels:
            index = label if isinstance(label, int) else names.index(label) if label in names else -1
            if not 0 <= index < len(names):
                raise Refused(
                    "invalid_input",
                    f"labels: {label!r} is no class. Give numbers from 0 to {len(names) - 1}, or names.",
                )
            found.append(index)
        return found

    def _steps(self, asked: int | None, usual: int) -> int:
        if asked is not None:
            self._check("steps", asked, self.settings.max_steps)
        return asked or min(usual, self.settings.max_steps)

    def _check(self, name: str, value: int, most: int) -> None:
        if value > most:
            raise Refused("invalid_input", f"{name} is {value}; at most {most} is computed for one request.")


def _seed(asked: int | None) -> int:
    return secrets.randbelow(2**31) if asked is None else asked
