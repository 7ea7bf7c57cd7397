"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

from jemstone.deployment.drift import DriftMonitor
from jemstone.deployment.predictor import Predictions

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters with a registry of their own, so that two servers of one process do not share them."""

    def __init__(self, queue: Callable[[], int], chains: Callable[[], int], drift: DriftMonitor) -> None:
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self._requests = Counter("jemstone_requests", "Requests answered.", ["route", "status"], **own)
        self._seconds = Histogram(
            "jemstone_request_seconds", "From the head of a request to its answer.", ["route"], buckets=SECONDS, **own
        )
        self._batch = Histogram("jemstone_batch_inputs", "Inputs computed at once.", buckets=INPUTS, **own)
        self._verdicts = Counter(
            "jemstone_predictions", "Inputs predicted; one can be ambiguous and foreign.", ["verdict"], **own
        )
        for verdict in ("accepted", "ambiguous", "foreign"):
            self._verdicts.labels(verdict)
        Gauge("jemstone_queue_inputs", "Inputs that wait for the model.", **own).set_function(queue)
        Gauge("jemstone_chain_requests", "Requests for chains, waiting or run.", **own).set_function(chains)
        self._drift = drift
        self.registry.register(_Drift(drift))

    def answered(self, route: str, status: int, seconds: float) -> None:
        """One request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, inputs: int) -> None:
        """One run of the model."""
        self._batch.observe(inputs)

    def predicted(self, found: Predictions) -> None:
        """What it said of a request's inputs."""
        for verdict, holds in (
            ("accepted", found.accepted),
            ("ambiguous", found.ambiguous),
            ("foreign", found.foreign),
        ):
            self._verdicts.labels(verdict).inc(int(holds.sum()))
        self._drift.update(found.log_density, found.accepted)

    def text(self) -> bytes:
        """All of it, in the text format of Prometheus."""
        text: bytes = generate_latest(self.registry)
        return text


class _Drift:
    """Asked anew whenever somebody looks."""

    def __init__(self, monitor: DriftMonitor) -> None:
        self.monitor = monitor

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "jemstone_drift", "How far recent log densities lie from held-out ones.", labels=["statistic"]
        )
        for name, value in self.monitor.statistics().items():
            family.add_metric([name], value)
        yield family
