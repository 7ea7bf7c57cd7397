"""Logits read as energies: the one idea that everything else stands on.

A classifier with logits f(x) in R^k defines, without a parameter more (JEM, Grathwohl et al., ICLR 2020, eq. 5-8):

    E(x, y) = -f_y(x)          p(x, y) = exp(f_y(x)) / Z
    E(x)    = -logsumexp f(x)  p(x)    = exp(-E(x)) / Z
    p(y|x)  = softmax(f(x))_y

Energies are in nats. Z is one unknown constant, so densities are known up to a constant that is the same for all x.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.func import grad as differentiated

from jemstone.errors import ConfigError
from jemstone.execution import PLAIN, Execution

EnergyGrad = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x (b, ...) -> (E(x) in nats (b,), grad E(x) (b, ...)). All that a sampler sees of a model."""


def marginal_energy(logits: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """E(x) = -logsumexp_y f_y(x), in nats. Adding c to all logits lowers it by c."""
    return -_wide(logits).logsumexp(dim=1)


def joint_energy(logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    """E(x, y) = -f_y(x), in nats. `y` holds class indices in [0, k)."""
    return -_wide(logits).gather(1, y[:, None]).squeeze(1)


def _wide(logits: Tensor) -> Tensor:
    """At least float32: near 100 nats, bfloat16 tells energies apart only half a nat at a time."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class EnergyClassifier(nn.Module):
    """Any network that returns logits, read as an energy-based model.

    `network` maps a batch (b, ...) to logits (b, k): images, vectors, anything with a batch axis. `forward` returns
    those logits untouched, so every tool made for classifiers keeps working.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits f(x), (b, k)."""
        logits: Tensor = self.network(x)
        if logits.ndim != 2:
            raise ConfigError(
                f"The network returned shape {tuple(logits.shape)} for an input of shape {tuple(x.shape)}; "
                "an EnergyClassifier needs logits of shape (batch, classes). Wrap the network so that it returns them."
            )
        return logits

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU for a model without parameters."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def energy(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """E(x), or E(x, y) where class indices `y` (b,) are given; nats, (b,)."""
        logits = self(x)
        return marginal_energy(logits) if y is None else joint_energy(logits, y)

    def log_density(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """log p(x), or log p(x, y), up to the constant log Z that all inputs share; nats, (b,)."""
        return -self.energy(x, y)


def energy_gradient(model: EnergyClassifier, y: Tensor | None = None, *, execution: Execution = PLAIN) -> EnergyGrad:
    """The function that yields E and grad_x E of `model`: the seam where precision, layout and compilation go.

    Only the gradient with respect to the input is computed: parameters neither need nor receive one. With class
    indices `y` (b,) it is E(x, y), one class per chain. An energy that does not depend on x has gradient 0. However the
    network runs (`execution`), energies and gradients come back in float32, or in the wider type of the model.
    """
    weights: dict[str, Tensor] = {}

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        x = execution.place(x.detach())
        if execution.compiled and len(x) == execution.compiled:
            if not weights:
                weights.update({name: weight.detach() for name, weight in model.network.named_parameters()})
                weights.update(model.network.named_buffers())
            grad, energy = _program(model, y is None, execution)(weights, x, y)
            return energy.clone(), grad.clone()  # a CUDA graph writes the next results to the same place
        with torch.enable_grad(), execution.autocast(x.device):
            logits = model(x.requires_grad_())
        energy, slope = _with_slope(logits.detach(), y)
        if not logits.requires_grad:  # a model without weights that ignores x
            return energy, torch.zeros_like(x)
        (grad,) = torch.autograd.grad(logits, x, slope, allow_unused=True)
        return energy, torch.zeros_like(x) if grad is None else grad

    return evaluate


def _with_slope(logits: Float[Tensor, "b k"], y: Tensor | None) -> tuple[Tensor, Tensor]:
    """The energies (b,), and their slope by the logits (b, k): -p(y|x), or -1 at the given class.

    grad_x E(x) = -sum_y p(y|x) grad_x f_y(x) is one product with the Jacobian of the logits, so that autograd need not
    record the logsumexp: for small networks that is a tenth of a chain step.
    """
    if y is None:
        return marginal_energy(logits), -_wide(logits).softmax(dim=1).to(logits.dtype)
    return joint_energy(logits, y), torch.zeros_like(logits).scatter_(1, y[:, None], -1.0)


_Program = Callable[..., tuple[Tensor, Tensor]]
_programs: WeakKeyDictionary[nn.Module, dict[tuple[bool, Execution], _Program]] = WeakKeyDictionary()


def _program(model: EnergyClassifier, marginal: bool, execution: Execution) -> _Program:
    """The compiled function (weights and buffers, x, y) -> (grad_x E, E) of `model`; made when it is first called.

    What is compiled is the gradient as a function of weights and input: compiling the model and differentiating that is
    slower than not compiling at all. A pass moves no buffer: it is given copies.
    """
    programs = _programs.setdefault(model, {})
    key = (marginal, execution)
    if key not in programs:
        network = model.network  # and not the model, which a program that outlives it would keep alive
        buffers = {name for name, _ in network.named_buffers()}

        def energy(state: dict[str, Tensor], x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
            own = {name: value.clone() if name in buffers else value for name, value in state.items()}
            with execution.autocast(x.device):
                logits = functional_call(network, own, (x,))
            energies = marginal_energy(logits) if y is None else joint_energy(logits, y)
            return energies.sum(), energies

        # On a GPU small networks wait for their launches, which a CUDA graph takes out.
        mode = "reduce-overhead" if next(network.parameters()).device.type == "cuda" else None
        programs[key] = torch.compile(differentiated(energy, argnums=1, has_aux=True), dynamic=False, mode=mode)
    return programs[key]
