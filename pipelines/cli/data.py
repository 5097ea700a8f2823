"""The ``denoise data`` commands: what a set holds, whether it is sound, and where else it lies."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from denoise.errors import UsageError, UserError, nearest
from pipelines.cli.common import AsJson, Settings, answer, configuration

if TYPE_CHECKING:
    from denoise.config import Config

app = typer.Typer(
    help="Look at data sets, verify them, and move their shards.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="A data set.")]
Split = Annotated[str | None, typer.Option(help="train, val or test; without, every split that is there.")]


@app.command()
def show(
    name: Name,
    split: Split = None,
    out: Annotated[Path | None, typer.Option(help="The contact sheet, a PNG; NAME.png by default.")] = None,
    as_json: AsJson = False,
    settings: Settings = None,
) -> None:
    """Say what a set holds, and draw a contact sheet of its images.

    Example: denoise data show kodak --out kodak.png
    """
    from pipelines.datasets.preview import contact_sheet, describe, table

    config = configuration(settings)
    splits = _splits(config, name, split)
    shown = [describe(config, name, one) for one in splits]
    sheet = contact_sheet(config, name, splits, out or Path(f"{name}.png"))
    answer({"name": name, "splits": shown, "sheet": str(sheet)}, f"{table(shown)}\n\ncontact sheet: {sheet}", as_json)


@app.command()
def verify(name: Name, split: Split = None, as_json: AsJson = False, settings: Settings = None) -> None:
    """Read every byte of a set's shards, here or at data.url, and compare with the index; exit code 1 if one is off.

    Example: denoise data verify kodak -S data.url=s3://bucket/shards
    """
    from pipelines.datasets.sync import verify as verify_split

    config = configuration(settings)
    splits = _splits(config, name, split)
    problems = [sentence for one in splits for sentence in verify_split(config, name, one)]
    told = "\n".join(problems) or f"{name} is sound ({', '.join(splits)})"
    answer({"name": name, "splits": splits, "problems": problems}, told, as_json)
    if problems:
        raise typer.Exit(1)


@app.command()
def push(name: Name, split: Split = None, settings: Settings = None) -> None:
    """Copy a set's shards from this machine to data.url; what is there already is not sent again.

    Example: denoise data push kodak -S data.url=s3://bucket/shards
    """
    from pipelines.datasets.sync import push as push_split

    config = configuration(settings)
    for one in _splits_here(config, name, split):
        print(push_split(config, name, one), file=sys.stderr)


@app.command()
def pull(name: Name, split: Split = None, settings: Settings = None) -> None:
    """Copy a set's shards from data.url to data/shards; an interrupted pull goes on.

    Example: denoise data pull kodak -S data.url=s3://bucket/shards
    """
    from pipelines.datasets.sync import pull as pull_split

    config = configuration(settings)
    for one in _splits(config, name, split):
        print(pull_split(config, name, one), file=sys.stderr)


def _splits(config: "Config", name: str, split: str | None) -> list[str]:
    """Return the split, or those that a set has where the configuration reads it from."""
    if config.data.url is None:
        return _splits_here(config, name, split)
    from pipelines.datasets.layout import SPLITS, open_remote
    from pipelines.storage.base import NotFoundError

    if split is not None:
        return [_known(split)]
    found = []
    for one in SPLITS:
        try:
            open_remote(config, one, name)
        except NotFoundError:
            continue
        found.append(one)
    if not found:
        raise UserError(f"{name} is not at {config.data.url}; put it there with `denoise data push {name}`.")
    return found


def _splits_here(config: "Config", name: str, split: str | None) -> list[str]:
    from pipelines.datasets.layout import SPLITS, shard_folder

    if split is not None:
        return [_known(split)]
    root = Path(config.data.root)
    found = [one for one in SPLITS if shard_folder(root, one, name).is_dir()]
    if not found:
        raise UserError(
            f"{name} is not in {root / 'shards'}; make it with `denoise fetch {name} && denoise shard {name}`."
        )
    return found


def _known(split: str) -> str:
    from pipelines.datasets.layout import SPLITS

    if split not in SPLITS:
        raise UsageError(f"--split {split} is not known{nearest(split, SPLITS)}; use train, val or test.")
    return split
