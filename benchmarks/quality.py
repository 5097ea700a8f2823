"""Quality within a given time: PSNR and SSIM of each recipe beside the published figures.

Trains each recipe for the given number of minutes (the number of steps follows from a measured rate), scores it on
test sets under a named protocol, and prints PSNR and SSIM beside the published PSNR. Run it in a project folder whose
data is sharded. For several runs of the same recipe give seeds.

    python benchmarks/quality.py samples --minutes 1 --out quality    # every method, for a minute each
    python benchmarks/quality.py bsd68 --minutes 15 --out quality     # grey, bsd400 -> BSD68, sigma 25: two cores do
    python benchmarks/quality.py correlated --minutes 15 --out quality # the same, noise of neighbours correlated
    python benchmarks/quality.py polyu --minutes 15 --out quality     # a camera's JPEGs, 70 -> 30
    python benchmarks/quality.py laine2019 --minutes 60 --out quality # colour, -> Kodak and BSDS300 test: a GPU
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from denoise.config import Config, load_config


@dataclass(frozen=True)
class Row:
    """One recipe, and its published PSNR by test set (../docs/methods.md names the sources)."""

    name: str
    overrides: Sequence[str]
    published: dict[str, float] = field(default_factory=dict)
    evaluations: Sequence[tuple[str, ...]] = ((),)  # overrides of one evaluation each
    teacher: str = ""  # the row whose model it learns from, trained before it


@dataclass(frozen=True)
class Table:
    """Recipes that are comparable: same images, same protocol."""

    overrides: Sequence[str]
    tests: Sequence[str]
    protocol: str
    rows: Sequence[Row]


# A step of ssdn costs seven of the others and needs larger crops: with a quarter of the batch it learns in minutes.
SSDN_SHAPE = ("train.batch_size=2", "train.crop=128")
R2R_PASSES = (("evaluate.passes=1",), ("evaluate.passes=50",))

# Every trained method as `denoise train method=NAME` has it; r2r's 50 passes are left out, its net is the others'.
METHOD_ROWS = [
    Row(name, (f"method={name}", *extra), {}, (("evaluate.passes=1",),))
    for name, extra in (
        ("n2c", ()), ("n2n", ()), ("n2v", ()), ("n2s", ()), ("n2same", ()), ("ssdn", ()), ("r2r", ("net=unet_n2n",)),
        ("nb2nb", ()), ("noisier2noise", ()), ("b2u", ()), ("sure", ()),
    )
]  # fmt: skip

CORRELATED_ROWS = (
    Row("n2n", ("method=n2n",)),
    Row("n2v", ("method=n2v", "method.mask_ratio=0.02")),
    Row("nb2nb", ("method=nb2nb",)),
    Row("ssdn", ("method=ssdn", "method.family=gauss", *SSDN_SHAPE)),
    Row("atbsn", ("method=atbsn", *SSDN_SHAPE)),
    Row("atbsn distilled", ("method=distil", *SSDN_SHAPE), teacher="atbsn"),
)
WHITE_ROWS = (
    Row("ssdn, white", ("noise=gauss25", "method=ssdn", *SSDN_SHAPE)),
    Row("atbsn, white", ("noise=gauss25", "method=atbsn", *SSDN_SHAPE)),
)
GREY = (
    "data.colour=grey", "data.train=[bsd400]", "data.val=[samples]", "data.test=[bsd68]",
    "train.batch_size=8", "train.crop=64", "train.lr=1e-3", "train.rampup=0.02", "train.rampdown=0.5",
    "train.augment=[flip, rotate]",
)  # fmt: skip

TABLES = {
    "samples": Table(("data.train=[samples]", "data.test=[samples]"), ("samples",), "float", METHOD_ROWS),
    "bsds300": Table(("data.train=[bsds300]", "data.test=[samples]"), ("samples",), "float", METHOD_ROWS),
    "bsd68": Table(
        ("noise=gauss25", *GREY),
        ("bsd68",),
        "float",
        (
            Row("n2c", ("method=n2c",), {"bsd68": 29.23}),
            Row("n2n", ("method=n2n",)),
            Row("n2v", ("method=n2v", "method.mask_ratio=0.02"), {"bsd68": 27.71}),
            Row("ssdn", ("method=ssdn", *SSDN_SHAPE), {"bsd68": 28.84}),
            Row("mu-only", ("method=ssdn", "method.mu_only=true", *SSDN_SHAPE)),
            Row("r2r", ("method=r2r", "net=unet_n2n"), {"bsd68": 29.14}, R2R_PASSES),
        ),
    ),
    "correlated": Table(("noise=corr25_0.8", *GREY), ("bsd68",), "float", (*CORRELATED_ROWS, *WHITE_ROWS)),
    "polyu": Table(
        (
            "noise=none", "data.colour=rgb", "data.train=[polyu]", "data.val=[]", "data.test=[polyu]",
            "train.batch_size=8", "train.crop=64", "train.lr=3e-4", "train.rampup=0.02", "train.rampdown=0.5",
            "train.augment=[flip, rotate]",
        ),
        ("polyu",),
        "float",
        (
            Row("n2n with the mean", ("method=n2n",)),
            Row("n2v", ("method=n2v",)),
            Row("n2v, square of 9", ("method=n2v", "method.structure=square", "method.structure_size=9")),
            Row("nb2nb", ("method=nb2nb",)),
            Row("ssdn", ("method=ssdn", "method.sigma=constant", *SSDN_SHAPE)),
            Row("atbsn", ("method=atbsn", *SSDN_SHAPE)),
            Row("atbsn distilled", ("method=distil", *SSDN_SHAPE), teacher="atbsn"),
        ),
    ),
    "laine2019": Table(
        (
            "noise=gauss25", "data.colour=rgb", "data.train=[bsds300, imagenet]", "data.val=[samples]",
            "data.test=[kodak, bsds300]", "train.batch_size=4", "train.crop=256", "train.lr=3e-4",
            "train.rampup=0.1", "train.rampdown=0.3",
        ),
        ("kodak", "bsds300"),
        "laine2019",
        (
            Row("n2c", ("method=n2c", "net=unet_ssdn"), {"kodak": 32.46, "bsds300": 31.08}),
            Row("n2n", ("method=n2n", "net=unet_ssdn"), {"kodak": 32.45, "bsds300": 31.07}),
            Row("n2v", ("method=n2v",), {"kodak": 30.32, "bsds300": 29.34}),
            Row("ssdn known", ("method=ssdn",), {"kodak": 32.45, "bsds300": 31.03}),
            Row("ssdn constant", ("method=ssdn", "method.sigma=constant"), {"kodak": 32.44, "bsds300": 31.02}),
            Row("mu-only", ("method=ssdn", "method.mu_only=true"), {"kodak": 30.64, "bsds300": 28.65}),
            Row("r2r", ("method=r2r",), {}, R2R_PASSES),
        ),
    ),
}  # fmt: skip


def configuration(table: Table, row: Row, steps: int, extra: Sequence[str] = ()) -> Config:
    """Return the configuration of a recipe for that many steps; validation and checkpoints five times a run."""
    every = max(1, steps // 5)
    lengths = [f"train.{key}={value}" for key, value in (("steps", steps), ("eval_every", every), ("log_every", every))]
    return load_config(
        Path("params.yaml"), [*table.overrides, *row.overrides, *lengths, f"train.checkpoint_every={every}", *extra]
    )


def steps_in(config: Config, minutes: float) -> int:
    """Return how many steps fit into that time, from the rate of a short run (no validation, no checkpoints)."""
    from pipelines.training.speed import images_per_second

    return max(1, int(60 * minutes * images_per_second(config) / config.train.batch_size))


def model_folder(out: Path, name: str, seed: int) -> Path:
    """Return where the model of a row and a seed is."""
    return out / f"{name.replace(' ', '-')}-{seed}"


def run(table: Table, row: Row, steps: int, seed: int, out: Path, extra: Sequence[str] = ()) -> list[dict[str, object]]:
    """Train a recipe and return one result for each evaluation and test set."""
    from pipelines.cli.common import open_model
    from pipelines.evaluate import evaluate_model
    from pipelines.training.local import train_locally

    config = configuration(table, row, steps, (f"seed={seed}", *extra))
    started = time.perf_counter()
    model = train_locally(config, out=model_folder(out, row.name, seed))
    seconds = time.perf_counter() - started
    results = []
    for overrides in row.evaluations:
        evaluation = configuration(table, row, steps, (*overrides, *extra))
        denoiser = open_model(evaluation, str(model))
        for result in evaluate_model(evaluation, denoiser, table.tests, table.protocol, None, None):
            scores = {key: result[key] for key in ("data", "protocol", "passes", "noisy_psnr", "psnr", "ssim")}
            published = row.published.get(str(result["data"]))
            results.append(
                {"recipe": row.name, "seed": seed, "steps": steps, "train_seconds": round(seconds), **scores}
                | {"published": published}
            )
    return results


def line(result: dict[str, object]) -> str:
    """Return one line of the table."""
    published = f"{result['published']:.2f}" if result["published"] else "-"
    return (
        f"| {result['recipe']} | {result['passes']} | {result['data']} | {result['steps']} "
        f"| {result['train_seconds']} | {result['psnr']:.2f} | {result['ssim']:.4f} | {published} |"
    )


def main() -> None:
    """Train, score, and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--recipes", nargs="*", help="some of the table's rows")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--out", type=Path, default=Path("quality"))
    arguments = parser.parse_args()
    table = TABLES[arguments.table]
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(f"| recipe | passes | test set | steps | train s | PSNR {table.protocol} | SSIM | published |")
    print("|---|---|---|---|---|---|---|---|")
    for row in table.rows:
        if arguments.recipes and row.name not in arguments.recipes:
            continue
        steps = arguments.steps or 0
        for seed in arguments.seeds:
            taught = [f"train.teacher={model_folder(arguments.out, row.teacher, seed)}"] if row.teacher else []
            steps = steps or steps_in(configuration(table, row, 1, taught), arguments.minutes)
            results = run(table, row, steps, seed, arguments.out, taught)
            for result in results:
                print(line(result), flush=True)
            with (arguments.out / "results.jsonl").open("a") as file:
                file.writelines(json.dumps(result) + "\n" for result in results)


if __name__ == "__main__":
    sys.exit(main())
