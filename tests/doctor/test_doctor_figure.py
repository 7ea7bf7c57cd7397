"""The doctor's figure: there, not blank, and it shows the failure."""

import io

import numpy as np
from PIL import Image

from jemstone.doctor import diagnose, draw

ROWS = [{"step": i, "energy_real": -3.0, "energy_negatives": -3.1, "energy_gap": 0.1} for i in range(1, 61)]
EVENT = {
    **{"event": "recovered", "step": 20, "failed_step": 40, "onset": 30, "verdict": "gap_explosion", "reason": "apart"},
    **{"evidence": {"step": [38, 39], "energy_gap": [-4.0, None]}, "metrics": {"energy_gap": -9.0}, "remedy": []},
}
RED, GREEN = (0xC6, 0x28, 0x28), (0x2E, 0x7D, 0x32)


def pixels(rows, events=()):
    picture = draw(rows, events, diagnose(rows, events))
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=int)


def count(image, colour):
    return int((abs(image - np.array(colour)).max(axis=-1) < 12).sum())


def test_a_healthy_log_has_lines_and_no_marks():
    image = pixels(ROWS)
    assert image.shape[0] > 300
    assert image.std() > 5
    assert (count(image, RED), count(image, GREEN)) == (0, 0)


def test_failures_and_recoveries_are_marked():
    image = pixels(ROWS, [EVENT])
    assert count(image, RED) > 20
    assert count(image, GREEN) > 20


def test_panels_are_those_that_there_are_numbers_for():
    one = pixels([{"step": i, "loss": 1 / i} for i in range(1, 30)])
    more = pixels([{**row, "train_accuracy": 0.9, "energy_auc": 0.5} for row in ROWS])
    assert more.shape[0] > 2 * one.shape[0]


def test_steps_that_were_rolled_back_are_drawn():
    without = {**EVENT, "evidence": {}, "metrics": {}}
    assert (pixels(ROWS, [EVENT]) != pixels(ROWS, [without])).any()


def test_nothing_to_draw_is_no_figure():
    assert draw([{"step": 1, "seconds": 2.0}], [], diagnose([])) is None


def test_numbers_that_are_not_finite_or_huge_do_not_stop_it():
    rows = [{"step": i, "energy_gap": -(10.0**i)} for i in range(30)] + [{"step": 31, "energy_gap": float("inf")}]
    assert pixels(rows).std() > 5


def test_the_same_run_has_the_same_figure():
    assert draw(ROWS, [EVENT], diagnose(ROWS, [EVENT])) == draw(ROWS, [EVENT], diagnose(ROWS, [EVENT]))
