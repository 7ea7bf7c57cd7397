"""Where training in memory has got to: what more of it goes on from, and samples start from."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from jemstone.data import Dataset
from jemstone.data.dataset import box_of
from jemstone.errors import ConfigError
from jemstone.execution import Execution
from jemstone.rng import generator
from jemstone.sampling import ClassGaussian, generate, uniform
from jemstone.training.config import TrainConfig
from jemstone.training.session import Session
from jemstone.training.setup import Trainer, make_fabric, make_sampler
from jemstone.training.state import TrainState


@dataclass
class Progress:
    """A session without its data and its functions, so that it can be pickled."""

    config: TrainConfig
    state: TrainState
    gaussian: ClassGaussian | None
    """Where chains start, unless that is uniform noise."""
    execution: Execution

    @classmethod
    def of(cls, session: Session) -> Progress:
        """The progress of `session`, which shares its state."""
        initial = session.initial
        gaussian = initial if isinstance(initial, ClassGaussian) else None
        return cls(session.config, session.state, gaussian, session.trainer.execution)

    def carried_on(self, data: Dataset, steps: int) -> Session:
        """A session that goes on from here on other data, for `steps` further ones at a constant learning rate."""
        state = copy.deepcopy(self.state)  # a call that fails leaves this one as it was
        state.history = ()  # of other data, by which these are not to be judged
        config = self.config.with_values(steps=state.step + steps, optimizer={"schedule": "constant"})
        trainer = Trainer.create(data, config, make_fabric(config), self.gaussian, self.execution)
        session = Session(config, data, state, trainer, None)
        session.recovery.begin_from(state)
        return session

    def sample(
        self, labels: Int[Tensor, " n"], input_shape: tuple[int, ...], seed: int, *, by_class: bool
    ) -> Float[Tensor, "n ..."]:
        """Fresh chains, one per label, run as long as a training chain lives, K / restart rate; on the CPU.

        With `by_class` they descend E(x, y), else E(x). Raises ConfigError for a classifier that was trained alone.
        """
        chains = self.config.chains
        if not self.config.weights.generative:
            raise ConfigError("A classifier alone has no samples: set generative_weight above 0, or another recipe.")
        box = box_of(input_shape)
        device = self.state.best.device
        return generate(
            self.state.best,
            self.gaussian or uniform(input_shape, box),
            make_sampler(chains, box),
            labels.to(device),
            round(self.state.chain_steps / (chains.restart_rate or 0.05)),
            generator(seed, "sample", device=device),
            by_class=by_class,
        ).cpu()
