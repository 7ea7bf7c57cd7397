"""What happened to a run on the way: every event in the table, in words, and marked on the curves."""

import base64
import json
import re

import pytest

from jemstone.report import plots, write_report
from jemstone.report.history import happenings, recovered_in_words
from jemstone.report.read import read_run

RECOVERED = {
    **{"event": "recovered", "step": 1250, "failed_step": 1466, "onset": 1454, "verdict": "gap_explosion"},
    **{"reason": "the median energy_gap is -6.69 nats", "remedy": ["learning rate x 0.3", "energy L2 at least 0.3"]},
    **{"attempt": 1, "poisoned_chains": 12, "evidence": {"step": [64]}, "metrics": {}},
}
DIVERGED = {
    **{"event": "diverged", "step": 99, "failed_step": 100, "onset": 100, "verdict": "non_finite"},
    "reason": "loss not finite. Gave up after 1 recoveries. `jemstone doctor RUN` says what to change",
}
DAMAGED = {"event": "damaged", "step": 40, "checkpoint": "step-00000050.safetensors", "error": "the digest differs"}
RESUMED = {"event": "resumed", "step": 40}
EVENTS = [{"event": "started", "step": 0}, RECOVERED, DAMAGED, RESUMED, {"event": "eased", "step": 60}, DIVERGED]


@pytest.fixture
def ill(make_run):
    path = make_run("ill", steps=200)
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    return path


def test_every_event_has_a_row_in_words(ill):
    rows = happenings([read_run(ill)])
    assert [row.kind for row in rows] == ["recovered", "damaged", "resumed", "diverged"]
    first, damaged, resumed, last = rows
    assert (first.step, first.what) == ("1,466", "The energies of data and negatives run apart")
    assert first.evidence == "Trend from step 1,454: the median energy_gap is -6.69 nats"
    assert first.done == (
        "back to step 1,250, then learning rate x 0.3, energy L2 at least 0.3; 12 poisoned chains discarded (attempt 1)"
    )
    assert (damaged.what, damaged.evidence) == ("Checkpoint step-00000050.safetensors damaged", "the digest differs")
    assert (resumed.step, resumed.done) == ("40", "went on from the checkpoint of step 40")
    assert (last.step, last.what, last.done) == ("100", "A number is not finite", "stopped")
    assert last.evidence == "loss not finite. Gave up after 1 recoveries"


def test_the_page_shows_it_and_names_the_command(tmp_path, ill, make_run, undrawn):
    text = write_report([ill, make_run("well")], tmp_path / "r.html").read_text()
    header, body = text.split("</header>")
    assert "ill recovered once by itself (gap_explosion at step 1,466): see what happened, under Training." in header
    assert "well recovered" not in header
    table = body.split("<h3>What happened</h3>")[1].split("</table>")[0]
    assert table.count("<tr>") == 1 + 4
    assert "12 poisoned chains discarded" in table
    assert f"Why ill failed, and what to change: <code>jemstone doctor {ill}</code>" in body
    assert "Why well failed" not in body
    assert "jemstone doctor RUN" not in text


def test_a_run_without_events_has_no_such_part(tmp_path, make_run, undrawn):
    text = write_report([make_run()], tmp_path / "r.html").read_text()
    assert "What happened" not in text
    assert recovered_in_words(read_run(make_run("other"))) == ""


def test_odd_events_do_not_stop_the_page(tmp_path, make_run, undrawn):
    path = make_run()
    odd = [{"event": kind} for kind in ("recovered", "diverged", "damaged", "resumed")]
    odd += [{"event": "recovered", "step": None, "remedy": 3, "verdict": "<b>new</b>", "attempt": None}]
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in odd))
    text = write_report([path], tmp_path / "r.html").read_text()
    assert "&lt;b&gt;new&lt;/b&gt;" in text
    assert "<b>new" not in text


def test_recoveries_have_a_mark_of_their_own():
    series = [("#0072B2", [1, 2, 3], [1.0, 2.0, 3.0], False)]
    plain = plots.training_curves(series)
    diverged = plots.training_curves(series, [("#0072B2", 2)])
    recovered = plots.training_curves(series, recoveries=[("#0072B2", 2)])
    assert len({plain, diverged, recovered}) == 3


def test_a_recovery_is_marked_on_the_curves(tmp_path, make_run):
    def pictures(path):
        text = write_report([path], tmp_path / "r.html").read_text()
        names = ("Energy gap", "Share of negatives above data", "Pull of the generative terms")
        found = {}
        for uri, alt in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"', text):
            found |= {name: base64.b64decode(uri) for name in names if alt.startswith(name)}
        return found

    path = make_run(steps=200, missing=("figures", "samples"))
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert set(pictures(path)) == {"Energy gap"}  # a run from before there were these metrics
    lines = [json.dumps(row | {"energy_auc": 0.5, "grad_ratio": 2.0}) for row in rows]
    (path / "metrics.jsonl").write_text("\n".join(lines))
    before = pictures(path)
    assert len(before) == 3
    with (path / "events.jsonl").open("a") as file:
        file.write(json.dumps(RECOVERED | {"step": 100}) + "\n")
    after = pictures(path)
    assert all(after[name] != before[name] for name in before)
