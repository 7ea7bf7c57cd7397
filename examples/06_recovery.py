"""A run with hopeless settings, stopped by nothing but NaN; and the same run under the guard, which mends it.

What one learns: what a verdict looks like, what recovery does about it, and that both are on unless switched off.
"""

import sys

from jemstone import Augment, Diverged, Session, load_dataset, recipe
from jemstone.training.validation import validate


def configuration(steps):
    # Group normalisation, a single chain step and a large learning rate: data and negatives are soon told apart.
    return recipe("jem").with_values(
        steps=steps,
        network={"name": "conv-8", "norm": "group", "activation": "silu"},
        chains={"steps": 1, "buffer_size": 1000},
        optimizer={"learning_rate": 0.02, "warmup_steps": 20},
        augment=Augment(noise=0.03),
        augment_real=Augment(noise=0.03),
        validate_every=0,
        device="cpu",
    )


def train(config, name):
    session = Session.start(config, load_dataset("digits"))
    gap, seen = 0.0, ()
    try:
        for metrics in session.train():
            gap = metrics["energy_gap"]
            treatment = session.state.treatment
            if treatment.failures != seen:
                seen = treatment.failures
                remedy = ", ".join(treatment.remedy.in_words())
                print(f"  failed at step {seen[-1]}: {', '.join(treatment.verdicts)}; now {remedy}")
    except Diverged as problem:
        print(f"  {problem}")
    accuracy = validate(session.model, session.data.test, session.trainer.fabric)["accuracy"]
    print(f"{name}: accuracy {accuracy:.1%}, energy gap {gap:.1f} nats")
    return {"accuracy": accuracy, "gap": gap, "failures": seen}


def main(steps=300):
    config = configuration(steps)
    off = config.with_values(limits={"window": 0, "energy": 1e30, "gap": 1e30}, recovery={"attempts": 0})
    return {"without": train(off, "without guard"), "with": train(config, "with guard and recovery")}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
