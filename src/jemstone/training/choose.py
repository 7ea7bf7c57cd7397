"""How a run is executed: what `precision`, `layout` and `compile` leave open is measured, and the choice explained.

Networks and machines differ too much for a rule: group normalisation is slow in channels-last memory on a CPU, bfloat16
is worth a factor of two to six or nothing, and compilers make mistakes. So a few steps of the run's own network are
timed on the run's own device, and their gradients compared. The choice is kept in config.json and a resumed run makes
no other, as another order of rounding would be another run.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from dataclasses import replace
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.flop_counter import FlopCounterMode

from jemstone.data.dataset import box_of
from jemstone.energy import EnergyClassifier, energy_gradient
from jemstone.errors import ConfigError
from jemstone.execution import PLAIN, Execution, Precision
from jemstone.networks.modes import dry_run, in_mode, moving_statistics
from jemstone.rng import generator, seeded
from jemstone.training.chains import chain_mode
from jemstone.training.config import TrainConfig
from jemstone.training.ranks import from_first, wait
from jemstone.training.resolution import low_steps

SMALL = 2e6
"""FLOPs of one input's forward pass below which nothing is tried: such a step is overhead, and its timing noise."""
GAIN = 0.95
"""A less plain execution must take less than this share of the time of a plainer one."""
ROUNDS, SECONDS = 3, 20.0
"""Timings of each candidate, and the time after which there are no further ones."""
WORTH_COMPILING = 900.0
"""Seconds of chains ahead from which on the half minute of a compilation may pay."""
AGREEMENT = 0.99
"""Mean cosine between gradients that pass for the same."""


class Choice(NamedTuple):
    """An execution, and in words why it was chosen."""

    execution: Execution
    reason: str


def as_configured(config: TrainConfig) -> Execution:
    """What the settings ask for, eager, and plain where they leave the choice open."""
    return Execution("bf16-mixed" if config.precision == "bf16-mixed" else "32-true", config.layout == "channels_last")


def choose_execution(
    model: EnergyClassifier, config: TrainConfig, input_shape: tuple[int, ...], total_steps: int
) -> Choice:
    """The fastest execution that `config` allows, for `model` where it is.

    What is tried is tried on copies. Only a compilation needs the model itself: it is then in the chosen layout
    afterwards, and otherwise as it was.

    Raises ConfigError where the configuration asks for a compiled gradient and torch cannot make a right one.
    """
    chosen = as_configured(config)
    if not any(p.requires_grad for p in model.parameters()):
        return Choice(chosen, "the network has no weights")
    probe = _Probe(model, config, input_shape)
    if probe.small:
        reason = "the network is too small for anything else to be faster"
    else:
        chosen, reason = _fastest(probe, config)
    if (probe.device.type == "cuda" or (probe.small and len(input_shape) != 3)) and _mergeable(probe, config):
        chosen = replace(chosen, merged=True)
    if config.compile == "off" or not config.weights.generative or (config.compile == "auto" and probe.small):
        return Choice(chosen, reason)
    if config.compile == "auto":
        steps = total_steps - config.classifier_steps - low_steps(config, total_steps)
        if probe.medians([chosen])[chosen] * config.chains.steps * steps < WORTH_COMPILING:
            return Choice(chosen, reason)
    return _with_compilation(probe, config, chosen, reason)


def agreed_execution(
    model: EnergyClassifier, config: TrainConfig, input_shape: tuple[int, ...], total_steps: int, fabric: Fabric
) -> Choice:
    """What `choose_execution` finds on rank 0, for all ranks; where that is compiled, the others compile too."""
    choice = from_first(lambda: choose_execution(model, config, input_shape, total_steps), fabric)
    if choice.execution.compiled and not fabric.is_global_zero:
        _Probe(model, config, input_shape).gradient(choice.execution)
    wait(fabric)  # a compilation may take longer than ranks wait for each other's step
    return choice


def _mergeable(probe: _Probe, config: TrainConfig) -> bool:
    """Whether the three batches of a step may be one: if the objective has all three and no layer mixes inputs."""
    weights = config.weights
    if not (weights.class_nll and weights.marginal_chains) or config.optimizer.balance:
        return False
    twin = probe.twin(PLAIN)
    with in_mode(twin, training=True), torch.no_grad():
        if moving_statistics(twin):  # which are of data alone, and would see negatives
            return False
        for module in twin.modules():
            if isinstance(module, _DropoutNd):
                module.eval()  # it draws anew for each pass and treats each input alone
        x = probe.x[:6]
        together, apart = twin(x), torch.cat([twin(part) for part in torch.split(x, 3)])
    spread = float(together.std(dim=0).max()) if len(x) > 1 else 0.0
    # Where all inputs have the same logits, nothing is seen of what mixes them.
    return spread > 1e-4 and float((together - apart).abs().max()) < 1e-3 * spread


def forward_flops(model: EnergyClassifier, input_shape: tuple[int, ...]) -> float:
    """Floating-point operations of the convolutions and matrix products of one input's forward pass."""
    counter = FlopCounterMode(display=False)
    with counter:
        dry_run(model, input_shape)
    return counter.get_total_flops() / 2


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 numbers faster than float32 ones, by what it says of itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Probe:
    """One step of the kind that a run consists of, on inputs like its own: a chain step, or a classifier's gradient."""

    def __init__(self, model: EnergyClassifier, config: TrainConfig, input_shape: tuple[int, ...]) -> None:
        self.model, self.config, self.input_shape = model, config, input_shape
        self.device = next(model.parameters()).device
        self.small = forward_flops(model, input_shape) < SMALL
        self._twins: dict[bool, EnergyClassifier] = {}
        generative = config.weights.generative
        rng = generator(config.seed, "probe", device=self.device)
        count = config.real_batch_size if generative else config.batch_size
        low, high = box_of(input_shape) or (-1.0, 1.0)
        self.x = low + (high - low) * torch.rand(count, *input_shape, generator=rng, device=self.device)
        self.labels: list[Tensor | None] = [None] if config.weights.marginal_chains or not generative else []
        if config.weights.conditional:
            classes = dry_run(model, input_shape).shape[1]
            self.labels.append(torch.arange(count, device=self.device) % classes)

    def twin(self, execution: Execution) -> EnergyClassifier:
        """The copy of the model that `execution` is tried on; the compiled program is made for the model itself.

        Passes change more than gradients: estimates of spectral norms, for one, and networks may have others.
        """
        if execution.compiled:
            execution.arrange(self.model)
            return self.model
        if execution.channels_last not in self._twins:
            twin = copy.deepcopy(self.model)
            execution.arrange(twin)
            self._twins[execution.channels_last] = twin
        return self._twins[execution.channels_last]

    def gradient(self, execution: Execution) -> Tensor:
        """The gradient that `execution` gives: of the energies by the inputs, or of a loss by the weights, as rows."""
        model, config = self.twin(execution), self.config
        with seeded(config.seed, "probe", device=self.device), execution.autocast(self.device):
            if config.weights.generative:
                with chain_mode(model, config):
                    rows = [energy_gradient(model, y, execution=execution)(self.x)[1] for y in self.labels]
                return torch.cat(rows).flatten(1)
            with in_mode(model, training=True):
                logits = model(execution.place(self.x))
            loss = cross_entropy(logits.float(), logits.argmax(dim=1))
            weights = [p for p in model.parameters() if p.requires_grad]
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            return torch.cat([gradient.flatten() for gradient in found if gradient is not None])[None]

    def medians(self, executions: list[Execution]) -> dict[Execution, float]:
        """Median seconds of a step of each, measured in turns, so that a busy moment of the machine hits all alike."""
        began = time.perf_counter()
        for execution in executions:
            self.gradient(execution)
        times: dict[Execution, list[float]] = {execution: [] for execution in executions}
        for _ in range(ROUNDS):
            for execution in executions:
                times[execution].append(self._seconds(execution))
            if time.perf_counter() - began > SECONDS:
                break
        return {execution: statistics.median(values) for execution, values in times.items()}

    def agreement(self, a: Execution, b: Execution) -> float:
        """Mean cosine between the gradients of two executions; two of zero agree."""
        first, second = self.gradient(a).float(), self.gradient(b).float()
        both_zero = ~(first.any(dim=1) | second.any(dim=1))
        return float(torch.where(both_zero, 1.0, cosine_similarity(first, second)).mean())

    def _seconds(self, execution: Execution) -> float:
        began = time.perf_counter()
        self.gradient(execution)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - began


def _fastest(probe: _Probe, config: TrainConfig) -> Choice:
    """Among the precisions and layouts that are left open, the plainest that none beats by much."""
    exact = config.weights.generative and config.chains.kernel == "mala"  # its acceptance test needs exact energies
    half = has_bfloat16(probe.device) and not exact
    precisions: tuple[Precision, ...] = ("32-true", "bf16-mixed") if half else ("32-true",)
    if config.precision != "auto":
        precisions = (config.precision,)
    layouts = {"contiguous": (False,), "channels_last": (True,)}.get(config.layout, (False, True))
    if len(probe.input_shape) != 3:
        layouts = (False,)
    candidates = [Execution(p, layout) for p, layout in itertools.product(precisions, layouts)]
    if len(candidates) == 1:
        return Choice(candidates[0], "as configured")
    notes = []
    if config.precision == "auto" and half and not probe.agreement(Execution("bf16-mixed"), PLAIN) >= AGREEMENT:
        candidates = [candidate for candidate in candidates if candidate.precision == "32-true"]
        notes.append("bfloat16 left out, as its gradients differ too much")
    if config.precision == "auto" and not half:
        why = "which kernel mala cannot use" if exact else "with which this device is no faster"
        notes.append(f"no bfloat16, {why}")
    times = probe.medians(list(dict.fromkeys([PLAIN, *candidates])))
    best = candidates[0]
    for candidate in candidates[1:]:
        if times[candidate] < GAIN * times[best]:
            best = candidate
    what = "chain step" if config.weights.generative else "gradient"
    gain = f"a {what} of {len(probe.x)} inputs takes {times[best] / times[PLAIN]:.0%} of its time in plain float32"
    return Choice(best, "; ".join([gain, *notes]))


def _with_compilation(probe: _Probe, config: TrainConfig, chosen: Execution, reason: str) -> Choice:
    """`chosen` with a compiled energy gradient, if that is right and faster; explained either way."""
    compiled = replace(chosen, compiled=config.real_batch_size)
    problem = ""
    try:
        agreement = probe.agreement(compiled, chosen)
        if not agreement >= AGREEMENT:
            problem = f"the compiled gradient is wrong: its mean cosine with the eager one is {agreement:.3f}"
    except Exception as error:  # a missing compiler, an operator that torch.compile does not know
        problem = f"torch.compile failed: {str(error).strip().splitlines()[0]}"
    if problem and config.compile == "on":
        raise ConfigError(f"compile is 'on', but {problem}. Set compile to 'off', or to 'auto' to have it left out.")
    if problem:
        return Choice(chosen, f"{reason}; not compiled, as {problem}")
    times = probe.medians([chosen, compiled])
    gain = f"{times[chosen] / times[compiled]:.2f} times as fast compiled"
    if config.compile == "on" or times[compiled] < GAIN * times[chosen]:
        return Choice(compiled, f"{reason}; {gain}")
    return Choice(chosen, f"{reason}; only {gain}, so not compiled")
