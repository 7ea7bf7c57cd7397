"""Published rows: only what may be printed, only where it belongs, and never tested."""

from dataclasses import replace

import pytest

from jemstone.evaluation.compare import Cell, Column, Comparison, Row
from jemstone.evaluation.directions import higher_is_better
from jemstone.evaluation.published import METRICS, PUBLISHED, add_published
from jemstone.evaluation.titles import is_share

NAMES = ("accuracy", "generation/fid", "legacy/fid", "ood/celeba/log_density/auroc", "nll")
TABLE = Comparison(
    columns=tuple(Column(name, name, "") for name in NAMES),
    rows=(Row("mine", (Cell(0.9, 0.8, 1.0, 10), None, None, None, Cell(0.3)), path="runs/mine"),),
    notes=("a note",),
    reference="mine",
    data="cifar-10",
    protocol="v1",
    tests=0,
    resamples=10,
    alpha=0.05,
    seed=0,
)


def row(model):
    return next(r for r in add_published(TABLE).rows if r.label.startswith(model))


def test_rows_stand_below_with_their_sources_and_without_tests():
    table = add_published(TABLE)
    assert table.rows[0] == TABLE.rows[0]
    assert len(table.rows) == 1 + len(PUBLISHED)
    assert all(r.source and not r.path for r in table.rows[1:])
    assert all(c is None or (c.p is None and not c.significant) for r in table.rows[1:] for c in r.cells)
    assert table.notes[0] == "a note"
    assert "not tested" in table.notes[-1]


def test_numbers_are_in_the_units_of_ours():
    jem = row("JEM, K = 20")
    assert [cell and cell.value for cell in jem.cells] == [0.929, 38.4, None, 0.75, None]
    for model in PUBLISHED:
        for name, value in model.values.items():
            assert higher_is_better(name) is not None, name
            assert not is_share(name) or 0 <= value <= 1, (model.model, name)


def test_a_distance_by_the_legacy_protocol_stands_in_its_own_column():
    sada = row("SADA-JEM")
    assert sada.cells[1] is None
    assert sada.cells[2] == Cell(9.4)
    assert "replay buffer" in sada.caveat


def test_second_hand_numbers_are_marked_and_first_hand_ones_are_not():
    assert row("EGC").cells[1] == Cell(3.30, quoted=True)
    assert row("JEM, K = 20").cells[0] == Cell(0.929)
    for model in PUBLISHED:
        assert model.quoted <= set(model.values)


def test_unchecked_numbers_are_not_printed():
    hdge = next(model for model in PUBLISHED if model.model == "HDGE")
    assert dict(hdge.values) == {"accuracy": 0.967}


@pytest.mark.parametrize("data", ["cifar10", "CIFAR-10", "cifar_10"])
def test_the_data_set_is_known_in_any_spelling(data):
    assert len(add_published(replace(TABLE, data=data)).rows) > 1


@pytest.mark.parametrize("data", ["cifar-100", "digits", ""])
def test_other_data_get_no_rows_unless_forced(data):
    table = replace(TABLE, data=data)
    left = add_published(table)
    assert left.rows == table.rows
    assert "CIFAR-10" in left.notes[-1]
    assert len(add_published(table, force=True).rows) > 1


def test_a_row_without_a_number_in_the_table_is_left_out():
    fid = replace(TABLE, columns=TABLE.columns[2:3], rows=(Row("mine", (Cell(20.0),)),))
    assert {r.label.split(",")[0] for r in add_published(fid).rows[1:]} == {"JEM++", "SADA-JEM"}
    nll = replace(TABLE, columns=TABLE.columns[4:], rows=(Row("mine", (Cell(0.3),)),))
    assert add_published(nll).rows == nll.rows
    assert "No published row" in add_published(nll).notes[-1]


def test_the_metrics_to_ask_for_are_those_of_the_rows():
    assert set(METRICS) == {name for model in PUBLISHED for name in model.values}
    assert len(METRICS) == len(set(METRICS))
