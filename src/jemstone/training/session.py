"""One training run from start to finish, or from its last checkpoint on: the loop joined to its run directory.

On several ranks each has a session; they hold the same state but for their chains, and rank 0 alone writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from jemstone.data import Dataset, labelled
from jemstone.energy import EnergyClassifier
from jemstone.errors import CheckpointError, Diverged
from jemstone.execution import Execution
from jemstone.runs import Run, require_free
from jemstone.sampling import Initial, Sampler
from jemstone.training.checkpoint import Checkpoint, list_checkpoints, step_of
from jemstone.training.choose import agreed_execution, as_configured
from jemstone.training.config import TrainConfig
from jemstone.training.diagnostics import Metrics
from jemstone.training.durable import restore_newest, save_state, share_of, stored
from jemstone.training.environment import facts, ranks_of, warn_of_changes
from jemstone.training.guard import check_evaluation
from jemstone.training.initial_file import load_initial
from jemstone.training.inputs import CUSTOM, check_dataset, data_of_run, load_data, make_model, read_config, settled
from jemstone.training.locate import require_finite
from jemstone.training.loop import train_step
from jemstone.training.outliers import digest_of, load_outliers, measured_margins, outliers_of_run
from jemstone.training.ranks import from_first, replicate, require_same
from jemstone.training.recovery import REFERENCE, Recovery
from jemstone.training.setup import Trainer, join_ranks, make_buffer
from jemstone.training.start_from import load_start
from jemstone.training.state import TrainState
from jemstone.training.validation import validate


class Session:
    """A run in progress. Make one with `start` or `resume`, then exhaust `train()`.

    Attributes:
        config: every setting.
        data: the data set, whose `train` split is trained on and whose `validation` split is watched.
        run: the run directory, or None for a run that leaves nothing on disk.
        resumed: whether it goes on with a run that was there.
        state: all that moves.
    """

    def __init__(
        self, config: TrainConfig, data: Dataset, state: TrainState, trainer: Trainer, run: Run | None
    ) -> None:
        self.config = config
        self.data = data
        self.state = state
        self.trainer = trainer
        self.run = run
        self.resumed = False
        self.recovery = Recovery(trainer, self._older)
        self._saved: list[Checkpoint] = []  # in the place of files, where there is no run directory

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        data: Dataset | None = None,
        network: nn.Module | None = None,
        *,
        run: str | Path | None = None,
    ) -> Session:
        """A new run.

        `data` defaults to what `config.data` names. `network`, any module from inputs to logits, takes the place of
        `config.network`; it is trained in place. With `config.start_from` (see `starting_from`) its weights are those
        of that run, which is not needed again. `run` is a directory to be made; without it nothing is written.
        What is given as an object must be given again to resume, evaluate or load the run.
        """
        if run is not None:
            require_free(run)  # before anything takes time
        fabric = join_ranks(config)
        if data is None:
            data = load_data(config)
        else:
            data = check_dataset(data)
            config = config.with_values(data={"source": CUSTOM})
        if network is not None:
            config = config.with_values(network={"name": CUSTOM, "definition": ""})
        config = settled(config, data.num_classes)
        if fabric.world_size > 1:
            require_same((config.to_dict(), data.digest()), "settings and data", fabric)
        model = make_model(config, data.input_shape, data.num_classes, network).to(fabric.device)
        load_start(model, config, data)
        outliers = load_outliers(config, data)
        if outliers is not None and not config.data.margins:
            found = from_first(lambda: measured_margins(model, data, outliers), fabric)
            config = config.with_values(data={"margins": tuple(found)})
        total = config.total_steps(len(labelled(data.train)), fabric.world_size)
        execution, reason = agreed_execution(model, config, data.input_shape, total, fabric)
        trainer = Trainer.create(data, config, fabric, execution=execution, outliers=outliers)
        state = _first_state(model, trainer, data.num_classes)
        directory = None
        if run is not None:
            info = {**facts(config, data, fabric), "execution": asdict(execution)}
            if outliers is not None:
                info["data"]["outliers"] = digest_of(outliers)
            directory = from_first(lambda: Run.create(run, info), fabric)
        session = cls(config, data, state, trainer, directory)
        session._event("started", 0, execution=str(execution), reason=reason)
        session._save()
        return session

    @classmethod
    def resume(cls, run: str | Path, data: Dataset | None = None, network: nn.Module | None = None) -> Session:
        """The run in directory `run`, as of its last checkpoint.

        On the CPU, with the same number of threads, of ranks and the same versions, what follows is bitwise what would
        have followed; with another number of threads there is a warning, and sums may round differently. With another
        number of ranks there is a warning too: the chains are shared out anew, and each step sees another batch.
        """
        directory = Run(run)
        if "imported" in directory.info:
            raise CheckpointError(
                f"{directory.path} was imported from {directory.info['imported']['file']}, which holds weights and no "
                "optimiser state, so there is nothing to resume. Evaluate it, or train on from its weights in a new "
                f"run: jemstone train RECIPE --from {directory.path}"
            )
        if "published" in directory.info:
            raise CheckpointError(f"{directory.path} is a copy that was handed on, without the state to resume from.")
        config, _ = read_config(directory)
        data = data_of_run(directory, config, data)
        fabric = join_ranks(config)
        model = make_model(config, data.input_shape, data.num_classes, network)
        initial = load_initial(directory, config, data.box, fabric.device)
        chosen = directory.info.get("execution")  # runs from before there was a choice hold none
        execution = as_configured(config) if chosen is None else Execution(**chosen)
        outliers = outliers_of_run(directory, config, data)
        trainer = Trainer.create(data, config, fabric, initial, execution, ranks_of(directory), outliers)
        # Killed before the first checkpoint, it is the beginning again, which the configuration determines too.
        if not from_first(lambda: list_checkpoints(directory.path / "checkpoints"), fabric):
            load_start(model, config, data)
        state = _first_state(model, trainer, data.num_classes)
        restore_newest(directory, state, trainer)
        if fabric.is_global_zero:
            directory.rewind(state.step, len(state.treatment.failures))
            warn_of_changes(directory, fabric.world_size)
        session = cls(config, data, state, trainer, directory)
        session._event("resumed", state.step)
        session.resumed = True
        session.recovery.begin_from(state)
        return session

    @property
    def model(self) -> EnergyClassifier:
        """The model to use: the averaged one where the recipe keeps one."""
        return self.state.best

    @property
    def initial(self) -> Initial | None:
        """Where chains start; None for a plain classifier."""
        return self.trainer.initial

    @property
    def sampler(self) -> Sampler:
        """The kernel that moves chains."""
        return self.trainer.sampler

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.trainer.total_steps

    def train(self) -> Iterator[Metrics]:
        """Train to the end, yielding the metrics of every step; logs, validates, saves and recovers on the way.

        A step that fails its health check is rolled back and treated (`jemstone.training.recovery`): the `step` of what
        is yielded then falls back. Raises Diverged, after noting it in events.jsonl, where recovery gives up or is off.
        """
        if self.state.step >= self.total_steps:
            self._note_finish()
            return
        began = time.monotonic()
        while self.state.step < self.total_steps:
            try:
                metrics = self._step()
            except Diverged as problem:
                self._recover(problem)
                continue
            metrics["seconds"] = round(time.monotonic() - began, 3)
            self._keep(metrics)
            yield metrics
        self._note_finish()

    def _step(self) -> Metrics:
        """One step; at the steps that the configuration names, its effect on the validation split is judged too."""
        factor = self.trainer.resolved(self.state.step).factor
        metrics = train_step(self.state, self.trainer)
        step, every = self.state.step, self.config.validate_every
        if self._validates and (step % every == 0 or step == self.total_steps):
            scores = validate(self.model, self.data.validation, self.trainer.fabric, factor=factor)
            metrics |= {f"validation_{name}": value for name, value in scores.items()}
            few = self.trainer.streams.labelled.split.spread(REFERENCE)
            metrics["evaluation_accuracy"] = validate(self.model, few, self.trainer.fabric, factor=factor)["accuracy"]
            self.state.history = check_evaluation(step, metrics, self.state.history, self.config.limits)
        if self._saves or self.recovery.keeps(step):
            require_finite(step, self.state.model, metrics)
        return metrics

    def _keep(self, metrics: Metrics) -> None:
        """Log and save what a healthy step left."""
        step, config = self.state.step, self.config
        if "validation_nll" in metrics:
            self._event("validation", step, accuracy=metrics["validation_accuracy"], nll=metrics["validation_nll"])
        if self.recovery.after(self.state):
            rung, remedy = self.state.treatment.rung, self.state.treatment.remedy
            self._event("eased", step, rung=rung, remedy=remedy.in_words())
        logged = step % config.log_every == 0 or step == self.total_steps or "validation_nll" in metrics
        if self.run is not None and self._leads and logged:
            self.run.log(metrics)
        if self._saves:
            self._save()

    def _recover(self, problem: Diverged) -> None:
        """Roll back, and make it durable: what is on disk afterwards is the treated state and its history."""
        try:
            recovered = self.recovery.recover(self.state, problem)
        except Diverged as final:
            self._event("diverged", self.state.step, **final.details())
            raise
        if self.run is not None and self._leads:
            # Newest first, and rows last: killed in between, the rows that are left reach as far as the checkpoints.
            for path in reversed(list_checkpoints(self.run.path / "checkpoints")):
                if step_of(path) > recovered.step:
                    path.unlink()
            self.run.rewind(recovered.step, len(self.state.treatment.failures) - 1)
        self._event("recovered", recovered.step, **recovered.details)
        self._save(prune=False)

    @property
    def _leads(self) -> bool:
        """Whether this is the one rank that writes."""
        return bool(self.trainer.fabric.is_global_zero)

    @property
    def _saves(self) -> bool:
        return self.state.step % self.config.checkpoint_every == 0 or self.state.step == self.total_steps

    @property
    def _validates(self) -> bool:
        return self.config.validate_every > 0 and len(self.data.validation) > 0

    def _note_finish(self) -> None:
        if (
            self.run is not None
            and self._leads
            and all(row["event"] != "finished" for row in self.run.rows("events.jsonl"))
        ):
            self._event("finished", self.state.step)

    def _event(self, event: str, step: int, **details: Any) -> None:
        if self.run is not None and self._leads:
            self.run.event(event, step, **details)

    def _save(self, *, prune: bool = True) -> None:
        """Make the state durable; recovery goes back to it at most, short of older checkpoints.

        A state that was saved because of a failure drives no older one out (`prune`): the next failure may need it.
        """
        self.recovery.begin_from(self.state)
        # Two windows back, at least: further than any trend that the guard sees.
        least = math.ceil(2 * self.config.limits.window / self.config.checkpoint_every) + 1
        keep = max(self.config.keep_checkpoints, least if self.config.recovery.attempts else 1) if prune else None
        if self.run is None:
            before = [saved for saved in self._saved if saved.step < self.state.step]
            self._saved = [*before, *self.recovery.snapshots][-(keep or 0) :]
            return
        save_state(self.run, self.state, self.trainer, keep)

    def _older(self) -> Iterator[Checkpoint]:
        """The states before the last one saved, newest first."""
        newest = self.recovery.snapshots[0].step
        if self.run is None:
            yield from (saved for saved in reversed(self._saved) if saved.step < newest)
            return
        for path, found in stored(self.run, self.trainer.fabric, newest):
            if isinstance(found, CheckpointError):
                self._event("damaged", self.state.step, checkpoint=path.name, error=str(found))
            else:
                yield share_of(found, self.state, self.trainer)


def _first_state(model: EnergyClassifier, trainer: Trainer, num_classes: int) -> TrainState:
    config, fabric, initial = trainer.config, trainer.fabric, trainer.resolved(0).initial
    replicate(model.to(fabric.device), fabric)
    buffer = None if initial is None else make_buffer(initial, config, num_classes, fabric)
    trainer.execution.arrange(model)
    return TrainState.create(model, config, buffer, fabric.device)
