"""What a server is told: how it batches, and where its patience ends."""

from __future__ import annotations

from dataclasses import dataclass

from jemstone.errors import ConfigError


@dataclass(frozen=True)
class ServeSettings:
    """Limits of a server. Whatever lies beyond one is answered with a 4xx that names it."""

    max_batch: int = 64
    """Inputs that the model is run on at once."""
    max_wait_ms: float = 0.0
    """How long the first input of a batch waits for others; 0: the model takes what is there when it is free."""
    queue: int = 1024
    """Inputs that may wait for the model; beyond them requests are answered with 429."""
    max_inputs: int = 64
    """Inputs of one request."""
    max_bytes: int = 2**24
    """Of the body of one request."""
    max_pixels: int = 2**24
    """Of all images of one request together, as their headers claim."""
    max_samples: int = 64
    """Chains of one request, samples and counterfactuals alike."""
    max_steps: int = 2000
    """Steps of a chain."""
    chain_queue: int = 4
    """Requests for chains that may wait for the one that runs."""
    head_seconds: float = 10.0
    """In which the head of a request has to arrive; clients that take longer are hung up on."""
    body_seconds: float = 30.0
    """In which its body has to arrive."""
    drift_window: int = 1000
    """The last so many inputs are compared with held-out data in /metrics."""

    def __post_init__(self) -> None:
        whole = (
            "max_batch",
            "queue",
            "max_inputs",
            "max_bytes",
            "max_pixels",
            "max_samples",
            "max_steps",
            "drift_window",
        )
        for name in whole:
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        for name in ("max_wait_ms", "chain_queue"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must not be negative.")
        for name in ("head_seconds", "body_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be positive.")
        if self.queue < self.max_inputs:
            raise ConfigError(f"queue is {self.queue}, and one request may bring {self.max_inputs} (max_inputs).")
