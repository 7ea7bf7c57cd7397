"""Protocols are values: frozen, serialisable, different in every budget, and refused where they make no sense."""

import json
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace

import pytest

from jemstone.errors import ConfigError
from jemstone.evaluation.protocol import BUDGETS, SECTIONS, Protocol


def test_every_section_has_settings_of_its_own():
    names = {field.name for field in fields(Protocol)}
    assert set(SECTIONS) == names - {"name", "sections", "seed", "batch_size", "resamples"}
    for protocol in BUDGETS.values():
        assert protocol.sections == tuple(SECTIONS)
        for name in SECTIONS:
            assert is_dataclass(getattr(protocol, name))
            with pytest.raises(FrozenInstanceError):
                setattr(getattr(protocol, name), fields(getattr(protocol, name))[0].name, 1)


def test_budgets_are_the_same_protocol_at_rising_prices():
    quick, standard, full = (BUDGETS[name] for name in ("quick", "standard", "full"))
    assert quick.common == standard.common == full.common
    assert quick.name == standard.name == full.name == "v1"
    for name, (one, other) in {"quick": (quick, standard), "full": (standard, full)}.items():
        different = [section for section in SECTIONS if getattr(one, section) != getattr(other, section)]
        assert set(different) >= set(SECTIONS) - {"calibration"}, name
    assert quick.generation.samples < standard.generation.samples < full.generation.samples
    assert quick.robustness.restarts <= standard.robustness.restarts <= full.robustness.restarts


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_protocol_survives_json(budget):
    """It is written into figures.json: nothing in it may change on the way."""
    plain = asdict(BUDGETS[budget])
    read = json.loads(json.dumps(plain, allow_nan=False))

    def listed(value):
        if isinstance(value, dict):
            return {key: listed(part) for key, part in value.items()}
        return [listed(part) for part in value] if isinstance(value, (tuple, list)) else value

    assert read == listed(plain)


def test_only_picks_sections_and_refuses_what_is_none():
    assert BUDGETS["quick"].only("robustness", "ood").sections == ("robustness", "ood")
    with pytest.raises(ConfigError, match=r"no section 'fid'; choose from calibration, ood"):
        Protocol().only("ood", "fid")
    with pytest.raises(ConfigError, match="no section"):
        Protocol().only()


@pytest.mark.parametrize("field", ["batch_size", "resamples"])
def test_counts_below_one_are_refused(field):
    with pytest.raises(ConfigError, match=field):
        replace(Protocol(), **{field: 0})
