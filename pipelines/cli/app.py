"""The ``denoise`` command. Heavy imports live inside the functions, so that --help and --version answer at once."""

import os
import sys
import traceback
from contextlib import redirect_stderr
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO, cast

import typer

from denoise.errors import UsageError, UserError
from denoise.printable import printable
from pipelines.cli import advise, cluster, data, models, prepare, runs, study, train, tune
from pipelines.cli.common import (
    AsJson,
    Axes,
    Channels,
    Settings,
    answer,
    configuration,
    explained,
    open_model,
    tracking_uri,
)
from pipelines.console import StreamWithoutPasswords, say
from pipelines.dvc_guard import dependencies_unchanged

app = typer.Typer(
    name="denoise",
    help="Train image denoisers that learn without clean images, compare them, and put them to use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
app.command()(prepare.fetch)
app.command()(advise.advise)
app.command()(prepare.shard)
app.command()(train.train)
app.command()(tune.tune)
app.command()(train.presets)
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")
app.add_typer(runs.app, name="runs")
app.add_typer(tune.app, name="sweeps")
app.add_typer(study.app, name="study")
app.add_typer(cluster.app, name="cluster")
app.command(context_settings={"allow_interspersed_args": False})(cluster.submit)


class Precision(StrEnum):
    """What ``restore`` computes in."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


DEVIATION_SCALE = 4.0  # a standard deviation of 1/4 becomes white; sigma 25 lies in the middle of the greys


def main() -> None:
    """Run the command line; a UserError becomes one sentence and exit code 1 (2 for wrong usage).

    Nothing on standard error shows a password of an address: no message of typer about a word, and no traceback.
    """
    with redirect_stderr(cast("TextIO", StreamWithoutPasswords(sys.stderr))):
        try:
            with dependencies_unchanged():
                _run()
        except Exception as exception:
            error = explained(exception)
            if not isinstance(error, UserError) or os.environ.get("DENOISE_DEBUG"):
                traceback.print_exc()
            else:
                print(f"error: {str(error).removesuffix('.')}.", file=sys.stderr)
            sys.exit(2 if isinstance(error, UsageError) else 1)


def _run() -> None:
    """Run the command; typer ends every one, also a successful one, with SystemExit."""
    try:
        app()
    except SystemExit as exit_:
        if exit_.code:
            raise


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"denoise {installed('noise2x')}")
        raise typer.Exit


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A model folder, models:/NAME@ALIAS, or an untrained method: bm3d, zs_n2n, mash.")
    ],
    data: Annotated[list[str] | None, typer.Option(help="Data set; repeat for several. Default: data.test.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="float, clamped, uint8, laine2019 or float_repeats. Default: evaluate.protocol."),
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="Noise to add. Default: evaluate.noise, else what the model was trained for.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option(help="Also estimate the PSNR as if there were no clean images, to compare the two.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for scores and images.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on the test split of data sets under a named protocol.

    Where a set has no clean images, the PSNR is estimated instead, from second observations or by SURE.

    Example: denoise evaluate models:/denoise-gauss25@champion --data kodak --protocol laine2019
    """
    from denoise.evaluate import get_protocol
    from pipelines.evaluate import ESTIMATE, evaluate_model
    from pipelines.report.residual import estimate_lines
    from pipelines.report.write import table

    config = configuration(settings)
    protocol = get_protocol(protocol or config.evaluate.protocol).name  # before a model is loaded
    noise = noise or config.evaluate.noise
    denoiser = open_model(config, model, noise)
    sets = data or config.data.test
    if not sets:
        raise UserError("data.test names no set to score on; name one with --data NAME.")
    results = evaluate_model(config, denoiser, sets, protocol, noise, out, estimate=estimate)
    scored = [result for result in results if "psnr" in result]
    lines = [line for result in results if ESTIMATE in result for line in estimate_lines(result)]
    answer(results, "\n".join([table(scored)] * bool(scored) + lines), as_json)
    if out is None:
        say("nothing was saved; --out FOLDER writes the scores and some images.")


@app.command()
def restore(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN...", help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="An image for one input, else a folder.")],
    model: Annotated[
        str, typer.Option(help="A model folder, models:/NAME@ALIAS, or an untrained method: bm3d, zs_n2n, mash.")
    ] = "models:/denoise-gauss25@champion",
    noise: Annotated[
        str | None,
        typer.Option(help="The noise of the images, e.g. gauss15. Default: what the model was trained for."),
    ] = None,
    deviation: Annotated[
        bool, typer.Option(help="Write 4 x the standard deviation of each restored value instead (ssdn models).")
    ] = False,
    tile: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Largest side of a tile in pixels. Default: as large as 1 to 2 GB of memory allow in bf16; for ssdn "
            "its training crop, if smaller than 256.",
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Least overlap of tiles in pixels. Default: 64, at most half of a tile."),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(help="bf16 changes PSNR by about 0.02 dB at most; auto: bf16 where the hardware computes in it."),
    ] = Precision.AUTO,
    keep_going: Annotated[bool, typer.Option(help="Restore the rest when an image does not decode.")] = False,
    axes: Axes = None,
    channels: Channels = "each",
    value_range: Annotated[
        str,
        typer.Option(
            "--range",
            help="Of stacks, the values that are 0 and 1 for the network: LOW,HIGH, type, or percentiles of the file. "
            "Default: the model's, else type for 8 bits and percentiles for others.",
        ),
    ] = "auto",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Restore noisy images of any size, and stacks plane by plane.

    Example: denoise restore noisy.png -o restored.png --model models:/denoise-gauss25@champion

    Example: denoise restore cells.tif -o restored.tif --axes TZYX --range 100,4095
    """
    from dataclasses import replace

    from denoise import distributed
    from denoise.noise import parse_noise
    from denoise.stacks.options import StackOptions
    from pipelines.restore.files import restore_files

    denoiser = open_model(configuration(settings), model, noise)
    denoiser = replace(denoiser, deviation=DEVIATION_SCALE * deviation, precision=precision.value)
    level = parse_noise(noise).level if noise else None
    device = str(distributed.device())
    results = restore_files(
        inputs,
        out,
        denoiser,
        level,
        tile=tile,
        overlap=overlap,
        device=device,
        keep_going=keep_going,
        stacks=StackOptions(axes, channels, value_range),
    )
    document = [
        {"source": str(image.source), "target": str(image.target), "seconds": round(image.seconds, 2)}
        for image in results
    ]
    answer(document, "\n".join(printable(str(image.target)) for image in results), as_json)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="The folder of the page.")] = Path("report"),
    metrics: Annotated[Path, typer.Option(help="The DVC metrics file.")] = Path("metrics.json"),
    models: Annotated[Path, typer.Option(help="Folder with one model folder a method.")] = Path("models"),
    evaluations: Annotated[Path, typer.Option(help="METHOD/DATA/PROTOCOL/scores.json are in it.")] = Path("evaluation"),
    settings: Settings = None,
) -> None:
    """Write the page that compares the methods of params.yaml, and metrics.json.

    Example: denoise report --out report
    """
    from denoise.files import write_json
    from pipelines.evaluate import find_scores
    from pipelines.report.write import metric_rows, table, write_report

    config = configuration(settings)
    protocol, methods = config.evaluate.protocol, config.compare
    scores = [find_scores(evaluations / method / name, protocol) for method in methods for name in config.data.test]
    page = write_report([models / method for method in config.compare], scores, out)
    rows = metric_rows(scores)
    write_json(metrics, rows)
    print(table(rows.values()))
    print(f"report: {page}")


@app.command()
def demo(settings: Settings = None) -> None:
    """Run the whole pipeline on images that are already installed, in under ten minutes on two cores.

    Example: denoise demo
    """
    from pipelines.demo import run_demo

    run_demo(configuration(settings))


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    host: Annotated[
        str, typer.Option(help="Loopback unless you know who else can reach it: MLflow has no login.")
    ] = "127.0.0.1",
    settings: Settings = None,
) -> None:
    """Serve MLflow's pages of runs and models on this machine; Ctrl-C ends it.

    Example: denoise ui --port 5001
    """
    from pipelines.tracking.server import run_ui

    config = configuration(settings)
    run_ui(tracking_uri(config), port, host, config.tracking.experiment)
