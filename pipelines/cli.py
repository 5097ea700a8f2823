"""The ``denoise`` command. Heavy imports live inside the functions, so that --help and --version answer at once."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from denoise.errors import UsageError, UserError
from pipelines import cli_cluster, cli_data, cli_models, cli_runs, cli_tune
from pipelines.cli_common import AsJson, Settings, answer, configuration, open_model, tracking_uri
from pipelines.stage_guard import dependencies_unchanged

if TYPE_CHECKING:
    from denoise.config import Config

app = typer.Typer(
    name="denoise",
    help="Train image denoisers that learn without clean images, compare them, and put them to use.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_runs.app, name="runs")
app.add_typer(cli_tune.app, name="sweeps")
app.command()(cli_tune.tune)
app.add_typer(cli_cluster.app, name="cluster")
app.command(context_settings={"allow_interspersed_args": False})(cli_cluster.submit)

DEVIATION_SHOWN = 4.0  # a standard deviation of 1/4 is white: those of sigma 25 are in the middle of the greys

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of params.yaml.")]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME]...", help="Data sets; without, those of params.yaml.")
]
Split = Annotated[str | None, typer.Option(help="train, val or test; without, every split of the set.")]


def main() -> None:
    """Run the command line; a UserError becomes one sentence and exit code 1 (2 for wrong usage)."""
    try:
        with dependencies_unchanged():
            _run()
    except UserError as error:
        if os.environ.get("DENOISE_DEBUG"):
            raise
        print(f"error: {str(error).removesuffix('.')}.", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def _run() -> None:
    """Run the command; typer ends every one, also a successful one, with SystemExit."""
    try:
        app()
    except SystemExit as ended:
        if ended.code:
            raise


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"denoise {installed('noise2x')}")
        raise typer.Exit


@app.command()
def fetch(
    names: Names = None,
    split: Split = None,
    mirror: Annotated[
        str | None, typer.Option(help="Folder or address to fetch from instead of the official site.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Bring data sets to data/raw.

    Example: denoise fetch kodak --mirror /srv/pictures
    """
    from pipelines.fetch import IMAGENETS
    from pipelines.fetch import fetch as fetch_set

    config = configuration(settings)
    for name, chosen in _sets_and_splits(config, names, split):
        folders = fetch_set(
            name,
            Path(config.data.root),
            splits=chosen,
            mirror=mirror or config.data.mirror,
            min_side=config.data.min_side if name in IMAGENETS else None,
            max_side=config.data.max_side if name in IMAGENETS else None,
        )
        for folder in folders:
            print(folder, file=sys.stderr)


@app.command()
def shard(
    names: Names = None,
    split: Split = None,
    source: Annotated[Path | None, typer.Option("--from", help="A folder of pictures of your own.")] = None,
    skip_broken: Annotated[bool, typer.Option(help="Leave out pictures that do not decode, and name them.")] = False,
    min_side: Annotated[int | None, typer.Option(help="Leave out pictures with a shorter side.", min=1)] = None,
    max_side: Annotated[int | None, typer.Option(help="Leave out pictures with a longer side.", min=1)] = None,
    only: Annotated[str | None, typer.Option(help="grey or colour: leave out the others.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that work side by side; they change no byte.", min=1)] = 1,
    settings: Settings = None,
) -> None:
    """Write data sets as WebDataset shards to data/shards. The same command goes on with an interrupted one.

    Example: denoise shard holiday --from ~/pictures/holiday --split train

    Example: denoise shard imagenet --split train --jobs 16
    """
    from denoise.shard_writer import Rules
    from pipelines.shard import shard as shard_split

    if only not in (None, "grey", "colour"):
        raise UsageError(f"--only {only} is not known; use grey or colour.")
    rules = Rules(min_side, max_side, only, skip_broken)

    config = configuration(settings)
    root = Path(config.data.root)
    if source is not None and (not names or len(names) != 1):
        raise UsageError(
            "--from needs exactly one NAME for the pictures in that folder, e.g. denoise shard mine --from DIR."
        )
    for name, chosen in _sets_and_splits(config, names, split or ("train" if source else None)):
        for one in chosen or _fetched_splits(root, name):
            print(shard_split(name, one, root, source, config.data.shard_mb, rules, jobs), file=sys.stderr)


@app.command()
def train(
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="In this process, without Ray and MLflow; torchrun implies it.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the run; the same name resumes it.")] = None,
    out: Annotated[Path | None, typer.Option(help="The model folder to write; runs/NAME/model by default.")] = None,
    inject: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAULT", help="Let something go wrong on purpose, e.g. kill:rank=1,step=37 (docs/training.md)."
        ),
    ] = None,
    profile: Annotated[
        bool, typer.Option(help="Write a profile of ten steps to runs/NAME/profile, with a page for the browser.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a method, or a published recipe. The same command resumes an interrupted run, and returns a finished one.

    Example: denoise train method=n2n noise=gauss25 train.steps=3000

    Example: denoise train preset=laine2019-gauss25-ssdn-known
    """
    from denoise.faults import parse_fault
    from pipelines.train_common import Stopped

    config, faults = configuration(overrides), [parse_fault(text) for text in inject or ()]
    try:
        if local or "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun would take --local for an option of its own
            from pipelines.train_local import train_locally

            folder = train_locally(config, name, out, faults, profile)
            if os.environ.get("RANK", "0") == "0":  # torchrun runs this command on every rank
                answer({"model": str(folder)}, f"model: {folder}", as_json)
            return
        from pipelines.train import train_on_ray

        done = train_on_ray(config, name, out, faults, profile)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        raise typer.Exit(130) from None
    except Stopped as stopped:
        print(stopped.sentence, file=sys.stderr)
        raise
    document = {"name": done.name, "model": str(done.folder), "run_id": done.run_id, **done.metrics}
    where = f"MLflow run {done.run_id}" if done.run_id else "not in MLflow yet: denoise runs sync"
    answer(document, f"model: {done.folder} ({where})", as_json)


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="One recipe, to see what it sets.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the published recipes that `denoise train preset=NAME` knows, or show one.

    Example: denoise presets laine2019-gauss25-ssdn-known
    """
    from dataclasses import asdict

    from pipelines import presets as recipes

    if name is None:
        known = recipes.presets()
        width = max(map(len, known))
        answer(
            {key: one.title for key, one in known.items()},
            "\n".join(f"{key:{width}}  {one.title}" for key, one in known.items()),
            as_json,
        )
        return
    recipe = recipes.load_preset(name)
    answer(asdict(recipe), recipes.described(recipe), as_json)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(help="A model folder, models:/NAME@ALIAS, or an untrained method: bm3d, zs_n2n.")
    ],
    data: Annotated[list[str] | None, typer.Option(help="Data set; repeat for several. Default: data.test.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="float, clamped, uint8 or laine2019. Default: evaluate.protocol.")
    ] = None,
    noise: Annotated[str | None, typer.Option(help="Noise to add. Default: what the model was trained for.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for scores and pictures.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Score a model on the test split of data sets under a named protocol.

    Example: denoise evaluate models:/denoise-gauss25@champion --data kodak --protocol laine2019
    """
    from denoise.evaluate import protocol_named
    from pipelines.evaluate import evaluate_model
    from pipelines.report import table

    config = configuration(settings)
    chosen = protocol_named(protocol or config.evaluate.protocol).name
    denoiser = open_model(config, model, noise)
    results = evaluate_model(config, denoiser, data or config.data.test, chosen, noise, out)
    answer(results, table(results), as_json)


@app.command()
def restore(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN...", help="Pictures, or folders of pictures.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A picture for one input, else a folder.")],
    model: Annotated[
        str, typer.Option(help="A model folder, models:/NAME@ALIAS, or an untrained method: bm3d, zs_n2n.")
    ] = "models:/denoise-gauss25@champion",
    noise: Annotated[
        str | None,
        typer.Option(help="The noise of the pictures, e.g. gauss15. Default: what the model was trained for."),
    ] = None,
    deviation: Annotated[
        bool, typer.Option(help="Write 4 x the standard deviation of each restored value instead (ssdn models).")
    ] = False,
    tile: Annotated[
        int, typer.Option(min=64, help="Side of the tiles that large pictures are cut into, in pixels.")
    ] = 512,
    keep_going: Annotated[bool, typer.Option(help="Restore the rest when a picture does not decode.")] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Restore noisy pictures of any size.

    Example: denoise restore noisy.png -o restored.png --model models:/denoise-gauss25@champion
    """
    from dataclasses import replace

    from denoise import distributed
    from denoise.noise import parse_noise
    from pipelines.restore import restore_files

    denoiser = replace(open_model(configuration(settings), model, noise), deviation=DEVIATION_SHOWN * deviation)
    level = parse_noise(noise).level if noise else None
    device = str(distributed.device())
    results = restore_files(inputs, out, denoiser, level, tile=tile, device=device, keep_going=keep_going)
    document = [
        {"source": str(one.source), "target": str(one.target), "seconds": round(one.seconds, 2)} for one in results
    ]
    answer(document, "\n".join(str(one.target) for one in results), as_json)


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="The folder of the page.")] = Path("report"),
    metrics: Annotated[Path, typer.Option(help="The DVC metrics file.")] = Path("metrics.json"),
    models: Annotated[Path, typer.Option(help="Folder with one model folder a method.")] = Path("models"),
    evaluations: Annotated[Path, typer.Option(help="Folder with METHOD/DATA/scores.json.")] = Path("evaluation"),
    settings: Settings = None,
) -> None:
    """Write the page that compares the methods of params.yaml, and metrics.json.

    Example: denoise report --out report
    """
    from denoise.files import write_json
    from pipelines import report as stage

    config = configuration(settings)
    scores = [evaluations / method / data for method in config.compare for data in config.data.test]
    page = stage.write_report([models / method for method in config.compare], scores, out)
    rows = stage.metrics(scores)
    write_json(metrics, rows)
    print(stage.table(rows.values()))
    print(f"report: {page}")


@app.command()
def demo(settings: Settings = None) -> None:
    """Run the whole pipeline on the pictures that are already installed, in under ten minutes on two cores.

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
    """Open MLflow's pages of runs and models on this machine; Ctrl-C ends it.

    Example: denoise ui --port 5001
    """
    from pipelines.ui import run_ui

    run_ui(tracking_uri(configuration(settings)), port, host)


def _sets_and_splits(
    config: "Config", names: list[str] | None, split: str | None
) -> list[tuple[str, list[str] | None]]:
    """Return what to work on: the named sets, or those that params.yaml names for the split (or for every split)."""
    from denoise.errors import nearest
    from pipelines.sources import SPLITS, chosen

    if split is not None and split not in SPLITS:
        raise UsageError(f"--split {split} is not known{nearest(split, SPLITS)}; use train, val or test.")
    if names:
        return [(name, [split] if split else None) for name in names]
    return [(name, [one]) for one in ([split] if split else SPLITS) for name in chosen(config, one)]


def _fetched_splits(root: Path, name: str) -> list[str]:
    from pipelines.sources import SPLITS, raw_folder

    found = [split for split in SPLITS if raw_folder(root, split, name).is_dir()]
    if not found:
        raise UserError(f"{name} is not in {root / 'raw'}; fetch it first: denoise fetch {name}.")
    return found


if __name__ == "__main__":
    main()
