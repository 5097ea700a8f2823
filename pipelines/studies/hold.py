"""What must hold in a study: comparisons of its rows' figures, written as expressions, and whether they held.

    psnr("mu only") < psnr("unknown") <= psnr("known") + 0.05
    gain(each) > 3

A figure of a row is a number for each seed. A comparison holds where the margin between its two sides is positive; with
several seeds it is only decided where the 95 % interval of the mean margin (Student's t) leaves 0 out.
"""

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from denoise.errors import UsageError, nearest
from pipelines.studies.figures import FIGURES, MissingFigureError, worst_gain
from pipelines.studies.results import Cell, StudyRun
from pipelines.studies.statistics import interval

Outcome = Literal["held", "failed", "not resolved", "not run"]

EACH = "each"  # in place of a row's name: every row in turn
WORST_GAIN = "worst_gain"  # the one figure of two rows
FUNCTIONS: Mapping[str, Callable[..., float]] = {"abs": abs, "min": min, "max": max}
OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Verdict:
    """Whether an expression held, with its numbers in words."""

    expression: str
    budget: str  # that it is stated for, or "always"
    outcome: Outcome
    detail: str


def check_expression(text: str, rows: Sequence[str]) -> None:
    """Check that an expression compares figures of known rows.

    Raises:
        UsageError: it does not; the message names what is wrong.
    """
    for node in ast.walk(_comparison(text)):
        if isinstance(node, ast.Call):
            _check_call(text, node, rows)
        elif isinstance(node, ast.Name) and node.id not in (*FIGURES, *FUNCTIONS, WORST_GAIN, EACH):
            known = [*FIGURES, WORST_GAIN, *FUNCTIONS]
            raise UsageError(
                f"{node.id} in {text!r} is not a figure{nearest(node.id, known)}; known: {', '.join(known)}."
            )
        elif isinstance(node, ast.BinOp) and type(node.op) not in OPERATORS:
            raise UsageError(f"{text!r} may only add, subtract, multiply and divide.")
        elif not isinstance(node, ALLOWED):
            raise UsageError(f'{text!r} should compare figures of rows, as in psnr("A") < psnr("B") + 0.05.')


def verdicts(run: StudyRun) -> list[Verdict]:
    """Return what the study states for its budget and for all, in its order, with what came of it."""
    hold = run.definition.get("hold", {})
    return [
        _verdict(run, expression, budget) for budget in ("always", run.budget) for expression in hold.get(budget, ())
    ]


ALLOWED = (
    *(ast.Compare, ast.Call, ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.USub, ast.Load),
    *(ast.operator, ast.Lt, ast.LtE, ast.Gt, ast.GtE),
)


def _comparison(text: str) -> ast.Compare:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if not isinstance(tree, ast.Compare):
        raise UsageError(f'{text!r} is not a comparison; write for example psnr("A") < psnr("B") + 0.05.')
    return tree


def _check_call(text: str, call: ast.Call, rows: Sequence[str]) -> None:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if call.keywords or name == EACH:
        raise UsageError(f'{text!r} should call figures by position, as in psnr("A", "kodak").')
    if name in FUNCTIONS or name not in (*FIGURES, WORST_GAIN):
        return
    named = call.args if name == WORST_GAIN else call.args[:1]
    if not 1 <= len(call.args) <= 2 or (name == WORST_GAIN and len(named) != 2):
        raise UsageError(f'{name} in {text!r} takes a row, as in {name}("A").')
    for argument in named:
        if isinstance(argument, ast.Name) and argument.id == EACH:
            continue
        row = str(ast.literal_eval(argument)) if isinstance(argument, ast.Constant) else ast.unparse(argument)
        if row not in rows:
            raise UsageError(f"{row} in {text!r} is not a row{nearest(row, rows)}; the rows are {', '.join(rows)}.")


def _verdict(run: StudyRun, expression: str, budget: str) -> Verdict:
    """Return whether an expression held: for every row in turn, if it names each."""
    comparison, rows = _comparison(expression), run.rows
    uses_each = any(isinstance(node, ast.Name) and node.id == EACH for node in ast.walk(comparison))
    outcomes: list[tuple[Outcome, str]] = []
    for each in rows if uses_each else [""]:
        outcomes += _links(run, comparison, each)
    for outcome in ("failed", "not run", "not resolved", "held"):
        details = [detail for found, detail in outcomes if found == outcome]
        if details:
            text = "; ".join(details)
            caveat = ONE_SEED * (ONE_SEED in text)  # said once, however many rows are compared
            return Verdict(expression, budget, outcome, text.replace(ONE_SEED, "") + caveat)
    return Verdict(expression, budget, "not run", "the study has no rows")


def _links(run: StudyRun, comparison: ast.Compare, each: str) -> Iterator[tuple[Outcome, str]]:
    """Yield the outcome of every link of a chain of comparisons, for one row in place of each."""
    sides = [comparison.left, *comparison.comparators]
    prefix = f"{each}: " * bool(each)
    for left, link, right in zip(sides, comparison.ops, sides[1:], strict=False):
        words = f"{ast.unparse(left)} {_SYMBOLS[type(link)]} {ast.unparse(right)}: " * (len(sides) > 2)
        pairs, missing = [], "no seed has been run"
        for cells in _cells_by_seed(run).values():
            try:
                pairs.append((_value(left, cells, each), _value(right, cells, each)))
            except MissingFigureError as error:
                missing = str(error) if "failed" not in missing else missing
        if not pairs:
            yield "not run", f"{prefix}{missing}"
            continue
        sign = 1 if isinstance(link, ast.Lt | ast.LtE) else -1
        margins = [sign * (second - first) for first, second in pairs]
        strict = isinstance(link, ast.Lt | ast.Gt)
        numbers = ", ".join(
            f"{first:.4g}" if isinstance(right, ast.Constant) else f"{first:.4g} and {second:.4g}"
            for first, second in pairs
        )
        outcome, how = _decided(margins, strict)
        yield outcome, f"{prefix}{words}{numbers}{how}".replace("'", '"')


ONE_SEED = " (one seed: how much training varies is not known)"
_SYMBOLS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}


def _decided(margins: Sequence[float], strict: bool) -> tuple[Outcome, str]:
    """Return whether the margins of all seeds together are positive, and in words how sure that is."""
    if not margins:
        return "not run", ""
    if len(margins) == 1:
        held = margins[0] > 0 or (margins[0] == 0 and not strict)
        return ("held" if held else "failed"), ONE_SEED
    low, high = interval(margins)
    how = f" (margin {low:.3g} to {high:.3g}, 95 % interval over {len(margins)} seeds)"
    if low > 0 or (low == high == 0 and not strict):
        return "held", how
    return ("failed" if high < 0 else "not resolved"), how


def _cells_by_seed(run: StudyRun) -> dict[int, dict[str, Cell]]:
    """Return the cells by seed and row."""
    return {seed: {cell.row: cell for cell in run.cells if cell.seed == seed} for seed in run.seeds}


def _value(node: ast.expr, cells: Mapping[str, Cell], each: str) -> float:
    """Return the number that an expression has with one seed.

    Raises:
        MissingFigureError: a row has not ended, or lacks the figure.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp):
        return -_value(node.operand, cells, each)
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_value(node.left, cells, each), _value(node.right, cells, each))
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise MissingFigureError("it is no number")
    if node.func.id in FUNCTIONS:
        return float(FUNCTIONS[node.func.id](*(_value(argument, cells, each) for argument in node.args)))
    names = [ast.literal_eval(argument) if isinstance(argument, ast.Constant) else each for argument in node.args]
    if node.func.id == WORST_GAIN:
        return worst_gain(*(_cell(cells, name) for name in names))
    return float(FIGURES[node.func.id](_cell(cells, names[0]), *names[1:]))


def _cell(cells: Mapping[str, Cell], row: str) -> Cell:
    if row not in cells:
        raise MissingFigureError(f"{row} has not been run")
    if cells[row].failure:
        raise MissingFigureError(f"{row} failed")
    return cells[row]
