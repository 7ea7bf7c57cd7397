"""Muon: hidden weights move by orthogonalised momentum, everything else by AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5: steep at 0, and from there into a band around 1 rather than to 1 (Jordan et al.)."""
ITERATIONS = 5
UPDATE_RMS = 0.2
"""Root mean square of an orthogonalised update, in learning rates: about that of AdamW's (Liu et al. 2025)."""
BETAS, EPS = (0.9, 0.999), 1e-8
"""Of AdamW, torch's defaults."""


class Muon(torch.optim.Optimizer):
    """Muon for the weights `hidden`, AdamW for `others`, under one learning rate and one decoupled weight decay.

    A weight, as a matrix (out, in * kernel), moves by the orthogonal matrix that is nearest to its momentum, up to the
    accuracy of `orthogonalised`, so that all directions move equally far: Jordan et al., "Muon: an optimizer for hidden
    layers in neural networks", 2024, with its Nesterov momentum. The update is scaled by 0.2 sqrt(max(out, in *
    kernel)), after which its root mean square is that of AdamW's (Liu et al., "Muon is scalable for LLM training",
    2025, section 2.2): hence one learning rate for both, of AdamW's size.

    The length of a gradient does not matter to either rule, only its length relative to those before.
    """

    def __init__(
        self,
        hidden: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        learning_rate: float,
        *,
        momentum: float,
        weight_decay: float,
    ) -> None:
        groups = [{"params": list(hidden), "rule": "muon"}, {"params": list(others), "rule": "adamw"}]
        defaults = {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. There is no `closure`: the gradients are there already."""
        assert closure is None, "Muon does not evaluate the loss"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                if group["rule"] == "muon":
                    self._orthogonal_step(p, p.grad, group["lr"], group["momentum"])
                else:
                    self._adam_step(p, p.grad, group["lr"])

    def _orthogonal_step(self, p: Tensor, grad: Tensor, rate: float, momentum: float) -> None:
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        average: Tensor = state["momentum_buffer"]
        average.lerp_(grad, 1 - momentum)
        update = grad.lerp(average, momentum).flatten(1)  # Nesterov
        scale = UPDATE_RMS * math.sqrt(max(update.shape))
        p.add_(orthogonalised(update).view_as(p), alpha=-rate * scale)

    def _adam_step(self, p: Tensor, grad: Tensor, rate: float) -> None:
        state = self.state[p]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(grad, 1 - BETAS[0])
        square.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
        bias, bias_of_square = (1 - beta ** state["step"] for beta in BETAS)
        p.addcdiv_(mean, (square / bias_of_square).sqrt_().add_(EPS), value=-rate / bias)


def orthogonalised(matrix: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Close to U V^T, where `matrix` is U S V^T: the same singular vectors, singular values of 0.68 to 1.21.

    Five Newton-Schulz steps X <- a X + b (X X^T) X + c (X X^T)^2 X, which apply an odd polynomial to the singular
    values. It brings all into this band that exceed 0.3 % of the Frobenius norm; smaller ones stay below it, 0 stays 0.

    In float32 everywhere, where the publication has bfloat16: beside the chains of a step it costs little (a tenth of a
    step on digits, less on larger images), CPU and GPU do the same, and matrix products repeat bit for bit.
    """
    a, b, c = QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).float()  # the smaller Gram matrix
    x = x / x.norm().clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x if wide else x.T).to(matrix.dtype)
    return result


def hidden_weights(model: nn.Module) -> list[nn.Parameter]:
    """The trainable weights of all convolutions and linear layers but the first and the last one.

    As Jordan et al. advise, the first layer and the head belong to AdamW. First and last are meant in the order in
    which the layers are attributes of the network.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    # Of parameters, not of `layer.weight`: under spectral normalisation that is computed and not what is trained.
    weights = [p for layer in layers for p in layer.parameters() if p.ndim > 1]
    outer = {id(weight) for weight in (*weights[:1], *weights[-1:])}
    distinct = {id(weight): weight for weight in weights if weight.requires_grad and id(weight) not in outer}
    return list(distinct.values())
