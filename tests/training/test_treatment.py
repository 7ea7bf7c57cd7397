"""The ladder of remedies: how it is climbed and left, and what a rung does to the settings of a step."""

import itertools
import json
import math
from dataclasses import asdict, replace

import pytest

from jemstone.errors import VERDICTS
from jemstone.objective import LossWeights
from jemstone.training.config import ChainConfig, TrainConfig
from jemstone.training.recipes import RECIPES, recipe
from jemstone.training.treatment import RATES, TOP_RUNG, Remedy, Treatment, remedy_at, settings_at


def test_a_failure_climbs_one_rung_on_a_probation_twice_the_last_one():
    first = Treatment().after_failure("gap_explosion", 40, 25, 100)
    assert first == Treatment((40,), ("gap_explosion",), 1, restored=25, since=25, probation=100)
    second = first.after_failure("non_finite", 60, 50, 100)
    assert second == Treatment((40, 60), ("gap_explosion", "non_finite"), 2, restored=50, since=50, probation=200)
    third = second.after_failure("gap_explosion", 61, 50, 100)
    assert third.verdicts == ("gap_explosion", "non_finite")  # each once
    assert (third.rung, third.probation) == (3, 400)


def test_the_ladder_ends():
    treatment = Treatment()
    for step in range(12):
        treatment = treatment.after_failure("energy_runaway", step, 0, 10)
    assert treatment.rung == TOP_RUNG == len(RATES)
    assert len(treatment.failures) == 12
    assert treatment.remedy.learning_rate == RATES[-2]  # an anchor is a rung behind
    assert treatment.after_failure("non_finite", 12, 0, 10).remedy.learning_rate == RATES[-1]


def test_a_rung_is_left_after_its_probation_and_not_before():
    treatment = Treatment((40,), ("gap_explosion",), 2, restored=25, since=25, probation=100)
    assert treatment.eased(124) is treatment
    eased = treatment.eased(125)
    assert eased == replace(treatment, rung=1, since=125)
    assert eased.eased(224) is eased
    free = eased.eased(225)
    assert (free.rung, free.verdicts, free.since) == (0, (), 225)
    assert (free.failures, free.probation) == ((40,), 100)  # remembered: the next relapse waits for longer
    assert free.eased(9999) is free
    assert free.remedy == Remedy()
    assert free.after_failure("non_finite", 300, 290, 100).probation == 200


def test_without_a_failure_there_is_nothing_to_ease():
    assert Treatment().eased(10**6) == Treatment()


@pytest.mark.parametrize("verdict", VERDICTS)
def test_higher_rungs_are_never_weaker(verdict):
    rungs = [remedy_at(rung, verdict) for rung in range(1, TOP_RUNG + 1)]
    for low, high in itertools.pairwise(rungs):
        assert low.joined(high) == high
        assert high.learning_rate < low.learning_rate


def test_joining_takes_the_stronger_of_each_setting_whatever_the_order():
    a = Remedy(0.3, 2, 0.3, 1.0, math.inf, False, 0.5)
    b = Remedy(0.1, 1, 1.0, 5.0, 1.0, True, 0.0)
    joined = Remedy(0.1, 2, 1.0, 1.0, 1.0, True, 0.5)
    assert a.joined(b) == b.joined(a) == joined
    assert a.joined(Remedy()) == a == Remedy().joined(a)
    assert a.joined(a) == a


def test_the_remedy_of_a_treatment_joins_those_of_its_verdicts_at_its_rung():
    treatment = Treatment((1, 2), ("buffer_collapse", "gap_explosion"), 2)
    assert treatment.remedy == remedy_at(2, "buffer_collapse").joined(remedy_at(2, "gap_explosion"))
    assert Treatment().remedy == Remedy()


def test_a_remedy_says_what_it_changes_and_no_more():
    assert Remedy().in_words() == []
    assert Remedy(0.1, energy_l2=0.3).in_words() == ["learning rate x 0.1", "energy L2 at least 0.3"]
    assert len(Remedy(0.3, 2, 0.3, 1.0, 1.0, True, 0.5).in_words()) == 7


@pytest.mark.parametrize("name", RECIPES)
def test_without_a_treatment_every_recipe_is_what_it_is(name):
    config = recipe(name)
    assert settings_at(config, Remedy(), config.chains.steps, classifier_only=False) == config


def test_settings_under_a_remedy():
    config = recipe("jem-small").with_values(weights={"energy_l2": 0.1}, chains={"steps": 10})
    remedy = Remedy(0.1, 4, 0.3, 1.0, 0.5, True, 0.5)
    treated = settings_at(config, remedy, 10, classifier_only=False)
    assert treated.optimizer == replace(config.optimizer, learning_rate=2e-4, clip_norm=1.0)
    assert treated.weights == replace(config.weights, energy_l2=0.3)
    assert treated.chains == replace(config.chains, steps=40, kernel="clipped", clip=0.5, clamp=True)
    assert replace(treated, optimizer=config.optimizer, weights=config.weights, chains=config.chains) == config


def test_a_remedy_never_loosens_what_a_recipe_holds_tighter():
    config = recipe("jem++-small").with_values(
        weights={"energy_l2": 2.0}, optimizer={"clip_norm": 0.2}, chains={"clip": 0.01}
    )
    treated = settings_at(config, Remedy(energy_l2=0.3, clip_norm=1.0, chain_clip=1.0), 10, classifier_only=False)
    assert treated == config


@pytest.mark.parametrize("kernel", ["mala", "normalized"])
def test_a_kernel_whose_steps_are_bounded_otherwise_stays(kernel):
    config = TrainConfig(weights=LossWeights(marginal=1.0), chains=ChainConfig(kernel))
    assert settings_at(config, Remedy(chain_clip=1.0), 20, classifier_only=False).chains.kernel == kernel


def test_more_steps_than_an_adaptive_maximum_are_allowed_under_treatment():
    config = recipe("jem-small").with_values(chains={"steps": 4, "max_steps": 6})
    assert settings_at(config, Remedy(), 6, classifier_only=False).chains.steps == 6
    assert settings_at(config, Remedy(chain_steps=4), 6, classifier_only=False).chains.steps == 24


def test_the_classifier_phase_has_the_class_term_alone():
    config = recipe("jem-small").with_values(
        weights={"energy_l2": 0.1, "discrimination": 1.0}, optimizer={"balance": 1.0}
    )
    alone = settings_at(config, Remedy(0.1, 2, 0.3), 10, classifier_only=True)
    assert alone.weights == LossWeights(class_nll=5.0)
    assert alone.optimizer.balance == 0
    assert alone.optimizer.learning_rate == pytest.approx(2e-4)


def test_a_plain_classifier_is_treated_where_it_can_be():
    config = recipe("classifier-small")
    treated = settings_at(config, remedy_at(1, "non_finite"), 20, classifier_only=False)
    assert treated == replace(config, optimizer=replace(config.optimizer, learning_rate=6e-4, clip_norm=1.0))


def test_round_trip_through_json():
    treatment = Treatment().after_failure("gap_explosion", 40, 25, 100).after_failure("non_finite", 60, 50, 100)
    back = Treatment.from_dict(json.loads(json.dumps(asdict(treatment))))
    assert back == treatment
    assert hash(back) == hash(treatment)  # tuples, not lists
    assert Treatment.from_dict(asdict(treatment)) == treatment
    assert Treatment.from_dict({}) == Treatment()


ANCHORED = ("energy_runaway", "gap_explosion", "dead_sampler", "saturated_chains")


@pytest.mark.parametrize("verdict", VERDICTS)
def test_an_anchor_is_tried_at_the_full_learning_rate_first(verdict):
    rates = [remedy_at(rung, verdict).learning_rate for rung in range(1, TOP_RUNG + 1)]
    assert rates == [1.0, *RATES[:-1]] if verdict in ANCHORED else rates == list(RATES)
    anchored = [remedy_at(rung, verdict).energy_l2 > 0 for rung in range(1, TOP_RUNG + 1)]
    assert anchored == [verdict in ANCHORED] * TOP_RUNG


def test_a_sudden_failure_starts_on_the_second_rung_and_later_ones_climb_as_ever():
    first = Treatment().after_failure("gap_explosion", 40, 25, 100, sudden=True)
    assert (first.rung, first.probation) == (2, 100)
    assert first.after_failure("gap_explosion", 50, 25, 100, sudden=True).rung == 3
    gradual = Treatment().after_failure("gap_explosion", 40, 25, 100)
    assert gradual.after_failure("gap_explosion", 50, 25, 100, sudden=True).rung == 2
    assert replace(first, rung=TOP_RUNG).after_failure("non_finite", 60, 25, 100, sudden=True).rung == TOP_RUNG
