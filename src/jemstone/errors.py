"""Every error that a user of jemstone can cause or meet, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class JemstoneError(Exception):
    """Base of all errors raised on purpose: says what was wrong, where, and what to do about it."""


class ConfigError(JemstoneError, ValueError):
    """A setting is out of range, unknown, or contradicts another."""


class DataError(JemstoneError, ValueError):
    """A data source is missing, malformed, or does not fit the model."""


class RunError(JemstoneError):
    """A run directory is missing, incomplete, or cannot be written."""


class CheckpointError(RunError):
    """A checkpoint is truncated, damaged, of another version, or does not fit the model."""


class RankError(JemstoneError):
    """Of several ranks that train one model, another one died or did not answer in time."""


class MissingExtra(JemstoneError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs the optional package {package!r}. Install it with: pip install 'jemstone[{extra}]'"
        )


VERDICTS = {
    "non_finite": "a number is not finite",
    "energy_runaway": "energies grow without bound",
    "gap_explosion": "the energies of data and negatives run apart",
    "dead_sampler": "chains no longer reach low energies, or no longer move",
    "saturated_chains": "chains sit at the border of the box",
    "buffer_collapse": "the chains have become few images, or few classes",
    "accuracy_collapse": "the classifier has lost what it had learnt",
}
"""Every verdict, in the order in which they are looked for."""
TOLD = ("loss", "grad_norm", "energy_real", "energy_negatives", "train_accuracy")
"""The metrics that the message of `Diverged` names; the others are in its `metrics`."""


class Diverged(JemstoneError):
    """A training step failed its health check; nothing in the training state has moved.

    `step` is the step that failed, `verdict` names how (docs/stability.md), `reason` is the evidence in words, `onset`
    is the step at which the trend began, `metrics` holds its numbers, and `evidence` those before it, as columns.
    """

    def __init__(
        self,
        step: int,
        reason: str,
        metrics: Mapping[str, float],
        *,
        verdict: str = "non_finite",
        onset: int | None = None,
        evidence: Mapping[str, list[float | None]] | None = None,
    ) -> None:
        numbers = ", ".join(f"{name}={metrics[name]:.4g}" for name in TOLD if name in metrics)
        super().__init__(f"Training diverged at step {step}: {verdict}: {reason} ({numbers})")
        self.step = step
        self.reason = reason
        self.metrics = dict(metrics)
        self.verdict = verdict
        self.onset = step if onset is None else onset
        self.evidence = dict(evidence or {})

    def details(self) -> dict[str, Any]:
        """The failure as plain values, for events.jsonl."""
        return {
            "failed_step": self.step,
            "onset": self.onset,
            "verdict": self.verdict,
            "reason": self.reason,
            "metrics": self.metrics,
            "evidence": self.evidence,
        }
