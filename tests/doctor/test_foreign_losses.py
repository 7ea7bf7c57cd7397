"""Logs of other projects: which columns are understood, with which sign, and what cannot be judged."""

import math

import pytest

from jemstone.doctor import open_case
from jemstone.errors import ConfigError, RunError


def table(path, header, rows, delimiter=","):
    lines = [delimiter.join(header), *(delimiter.join(str(cell) for cell in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def gap(i, at=40):
    """A gap that is small and then explodes."""
    return 0.2 * math.sin(i) if i < at else -3 * 1.5 ** (i - at)


@pytest.fixture
def jem_log(tmp_path):
    """The text that the release of Grathwohl et al. prints: f(x_p_d) and f(x_q) are logsumexp, so minus energies."""
    lines = ["saving checkpoint", "Epoch 0: Valid Loss 1.2, Valid Acc 0.5"]
    for i in range(60):
        epoch, batch = divmod(100 * i, 703)
        fp, fq = 2.0 - gap(i), 2.0
        lines.append(f"P(x) | {epoch}:{batch:d} f(x_p_d)={fp:>14.9f} f(x_q)={fq:>14.9f} d={fp - fq:>14.9f}")
        lines.append(f"P(y|x) {epoch}:{100 * i:d} loss={0.5:>14.9f}, acc={0.9:>14.9f}")
    path = tmp_path / "log.txt"
    path.write_text("\n".join(lines))
    return path


def test_the_log_of_the_jem_release(jem_log):
    case = open_case(jem_log)
    assert case.figure == jem_log.with_name("log-doctor.png")
    assert [row["step"] for row in case.rows[:3]] == [0, 100, 200]
    assert case.rows[0]["energy_real"] == -2.0
    assert case.rows[50]["energy_gap"] == pytest.approx(gap(50))
    assert any("energy = -f" in sentence for sentence in case.reading)
    finding = case.diagnosis().findings[0]
    assert finding.verdict == "gap_explosion"
    assert 3900 <= finding.onset <= finding.failed <= 5000
    assert "pushed apart" in finding.what


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("names", "sign"),
    [
        (("Iter", "Loss", "f_x_p", "f_x_q", "Acc"), -1),
        (("step", "train_loss", "fp_all", "fq_all", "train/acc"), -1),
        (("epoch", "loss", "Energy_Real", "energy_neg", "accuracy"), 1),
        (("global_step", "loss", "E_pos", "E_neg", "train_accuracy"), 1),
    ],
)
def test_columns_are_known_by_common_names(tmp_path, names, sign, delimiter):
    rows = [(20 * (i + 1), 0.5, sign * (gap(i) - 3.0), sign * -3.0, 90) for i in range(60)]
    case = open_case(table(tmp_path / "x.csv", names, rows, delimiter))
    assert case.rows[0]["step"] == 20
    assert case.rows[0]["train_accuracy"] == 0.9  # given as per cent
    assert [row["energy_gap"] for row in case.rows] == pytest.approx([gap(i) for i in range(60)])
    found = case.diagnosis()
    assert found.findings[0].verdict == "gap_explosion"
    assert not any("--" in change for change in found.change)


def test_a_healthy_log_says_what_it_could_not_judge(tmp_path):
    rows = [(i, 0.5 + 0.1 * math.sin(i), 0.9) for i in range(60)]
    case = open_case(table(tmp_path / "x.csv", ("step", "loss", "acc"), rows))
    assert case.diagnosis().healthy
    assert any("whether energies run away or apart" in sentence for sentence in case.reading)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_loss_alone_is_judged_by_its_growth(tmp_path, sign):
    rows = [(i, 0.5 if i < 40 else sign * 1.6 ** (i - 40)) for i in range(60)]
    found = open_case(table(tmp_path / "x.csv", ("epoch", "loss"), rows)).diagnosis()
    assert found.findings[0].verdict == "loss_runaway"
    assert 40 <= found.findings[0].onset <= found.findings[0].failed <= 59


def test_a_falling_loss_is_no_runaway(tmp_path):
    rows = [(i, 2.3 * math.exp(-i / 10)) for i in range(60)]
    assert open_case(table(tmp_path / "x.csv", ("epoch", "loss"), rows)).diagnosis().healthy


@pytest.mark.parametrize("cell", ["nan", "NaN", "inf", "-Infinity"])
def test_a_number_that_is_not_finite_is_a_finding(tmp_path, cell):
    rows = [(i, cell if i >= 30 else 0.5) for i in range(40)]
    finding = open_case(table(tmp_path / "x.csv", ("step", "loss"), rows)).diagnosis().findings[0]
    assert (finding.verdict, finding.failed) == ("non_finite", 30)
    assert "in 10 of 40 rows" in finding.what


def test_cells_that_were_not_measured_are_none(tmp_path):
    empty = [(i, 0.5, 0.8 if i % 10 == 0 else "") for i in range(40)]
    nan = [(i, 0.5, 0.8 if i % 10 == 0 else "nan") for i in range(40)]
    for rows in (empty, nan):
        found = open_case(table(tmp_path / "x.csv", ("step", "loss", "val_acc"), rows)).diagnosis()
        assert found.healthy
        assert found.numbers["validation_accuracy"] == "80.0%"
    assert any("not measured" in note for note in found.notes)


def test_steps_that_start_over_are_counted(tmp_path):
    rows = [(i % 10, 0.5) for i in range(40)]
    case = open_case(table(tmp_path / "x.csv", ("iter", "loss"), rows))
    assert [row["step"] for row in case.rows] == list(range(1, 41))
    assert any("rows are counted" in sentence for sentence in case.reading)


def test_columns_can_be_named(tmp_path):
    rows = [(i, gap(i) - 3.0, -3.0) for i in range(60)]
    path = table(tmp_path / "x.csv", ("t", "alpha", "beta"), rows)
    case = open_case(path, {"step": "t", "energy_real": "alpha", "energy_negatives": "beta"})
    assert case.rows[50]["energy_gap"] == pytest.approx(gap(50))
    turned = open_case(path, {"f_real": "alpha", "f_negatives": "beta"})
    assert turned.rows[50]["energy_gap"] == pytest.approx(-gap(50))


def test_an_unknown_table_lists_its_columns_and_the_syntax(tmp_path):
    path = table(tmp_path / "x.csv", ("t", "alpha", "beta"), [(1, 2, 3)])
    with pytest.raises(ConfigError, match=r"It has: t, alpha, beta\..*--columns energy_real=e_pos"):
        open_case(path)
    with pytest.raises(ConfigError, match=r"no column 'gamma'.*It has: t, alpha, beta"):
        open_case(path, {"loss": "gamma"})
    with pytest.raises(ConfigError, match=r"knows no colour\. Known: step, loss"):
        open_case(path, {"colour": "alpha"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no table"),
        ("step,loss\n", "holds no table"),
        ("1,0.5\n2,0.4\n", "no line of column names"),
        ("step,loss\n1,red\n2,blue\n", "no row with a number"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, message):
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(RunError, match=message):
        open_case(path)
