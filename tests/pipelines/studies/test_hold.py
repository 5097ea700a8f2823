"""Expressions about the rows of a study: which are refused, and what comes of them."""

import pytest

from denoise.errors import UsageError
from pipelines.studies.hold import check_expression, verdicts
from pipelines.studies.results import Cell, StudyRun


def scored(row, seed, psnr, noisy=20.0):
    images = [{"name": "a.png", "psnr": psnr - 1, "noisy_psnr": noisy}, {"name": "b.png", "psnr": psnr + 1}]
    return Cell(row, seed, {}, scores={"kodak": {"psnr": psnr, "noisy_psnr": noisy, "bias": 2 / 255, "images": images}})


def outcome(expression, cells, rows=("A", "B c"), budget="short"):
    """Return what became of an expression that is stated for a budget."""
    seeds = tuple(sorted({cell.seed for cell in cells})) or (0,)
    run = StudyRun("s", budget, {"hold": {budget: [expression]}}, rows, seeds, cells=tuple(cells))
    (verdict,) = verdicts(run)
    return verdict


ONE_SEED = [scored("A", 0, 25.0), scored("B c", 0, 26.0)]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('psnr("A") < psnr("B c")', "held"),
        ('psnr("A") > psnr("B c", "kodak")', "failed"),
        ('psnr("A") < psnr("B c") <= psnr("A") + 0.5', "failed"),
        ('abs(psnr("A") - psnr("B c")) <= 1', "held"),
        ("gain(each) > 5.5", "failed"),
        ("gain(each) > 4.5", "held"),
        ('bias("A") < 2.1', "held"),
        ('worst_gain("B c", "A") > 0.9', "held"),
        ('psnr("A", "bsds300") > 0', "not run"),
        ('rate("A") > 0', "not run"),
        ('-psnr("A") / 2 + min(1, 2) * max(3, 4) < 0', "held"),
    ],
)
def test_one_seed_decides_with_a_word_of_caution(expression, expected):
    verdict = outcome(expression, ONE_SEED)
    assert verdict.outcome == expected
    assert expected == "not run" or "one seed" in verdict.detail


@pytest.mark.parametrize(
    ("differences", "expected"),
    [((0.30, 0.31, 0.29), "held"), ((-0.30, -0.31, -0.29), "failed"), ((0.5, -0.4, 0.1), "not resolved")],
)
def test_several_seeds_decide_only_where_their_interval_leaves_zero_out(differences, expected):
    cells = [
        cell for seed, d in enumerate(differences) for cell in (scored("A", seed, 25), scored("B c", seed, 25 + d))
    ]
    verdict = outcome('psnr("A") < psnr("B c")', cells)
    assert verdict.outcome == expected
    assert "3 seeds" in verdict.detail


def test_seeds_that_lack_a_row_are_left_out():
    verdict = outcome('psnr("A") < psnr("B c")', [*ONE_SEED, scored("A", 1, 30)])
    assert verdict.outcome == "held"


def test_a_row_that_failed_or_was_not_run_leaves_a_statement_open():
    failed = Cell("B c", 0, {}, failure="the loss is nan")
    assert "B c failed" in outcome('psnr("A") < psnr("B c")', [ONE_SEED[0], failed]).detail
    assert "B c has not been run" in outcome('psnr("A") < psnr("B c")', ONE_SEED[:1]).detail


def test_statements_of_other_budgets_are_not_looked_at():
    hold = {"paper": ["gain(each) > 9"], "always": ["gain(each) > 1"]}
    run = StudyRun("s", "short", {"hold": hold}, ("A",), (0,), cells=(ONE_SEED[0],))
    assert [(verdict.budget, verdict.outcome) for verdict in verdicts(run)] == [("always", "held")]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ('psnr("A")', "not a comparison"),
        ("import os", "not a comparison"),
        ('psnr("B") > 1', "B in .* is not a row .did you mean B c"),
        ('psnrr("A") > 1', "did you mean psnr"),
        ('__import__("os") > 1', "not a figure"),
        ('psnr("A").real > 1', "should compare"),
        ('psnr("A") ** 2 > 1', "add, subtract"),
        ('psnr(row="A") > 1', "by position"),
        ('worst_gain("A") > 1', "takes a row"),
        ("[1][0] > 0", "should compare"),
        ('psnr("A") == 1', "should compare"),
    ],
)
def test_other_expressions_are_refused_in_one_sentence(expression, message):
    with pytest.raises(UsageError, match=message):
        check_expression(expression, ["A", "B c"])
