"""``denoise data``: look at data sets, verify them, and move their shards."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from denoise.errors import UserError
from pipelines.cli.common import AsJson, Settings, answer, configuration
from pipelines.cli.prepare import Split, checked, set_and_wanted_split
from pipelines.console import say

if TYPE_CHECKING:
    from denoise.config import Config

app = typer.Typer(
    help="Look at data sets, verify them, and move their shards.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="A data set, SET or SET/SPLIT.")]


@app.command()
def show(
    name: Name,
    split: Split = None,
    out: Annotated[Path | None, typer.Option(help="A PNG; NAME-contact-sheet.png by default.")] = None,
    as_json: AsJson = False,
    settings: Settings = None,
) -> None:
    """Say what a set holds, and draw a contact sheet of its images.

    Example: denoise data show kodak --out kodak.png
    """
    from pipelines.datasets.preview import contact_sheet, describe, table

    config = configuration(settings)
    name, split = set_and_wanted_split(name, split)
    splits = _splits(config, name, split)
    rows = [describe(config, name, split_name) for split_name in splits]
    sheet = contact_sheet(config, name, splits, out or Path(f"{name}-contact-sheet.png"))
    answer({"name": name, "splits": rows, "sheet": str(sheet)}, f"{table(rows)}\n\ncontact sheet: {sheet}", as_json)


@app.command()
def verify(name: Name, split: Split = None, as_json: AsJson = False, settings: Settings = None) -> None:
    """Read every byte of a set's shards, here or at data.url, and compare with the index; exit code 1 if one is wrong.

    Example: denoise data verify kodak -S data.url=s3://bucket/shards
    """
    from pipelines.datasets.sync import verify as verify_split

    config = configuration(settings)
    name, split = set_and_wanted_split(name, split)
    splits = _splits(config, name, split)
    problems = [problem for split_name in splits for problem in verify_split(config, name, split_name)]
    text = "\n".join(problems) or f"{name} is sound ({', '.join(splits)})"
    answer({"name": name, "splits": splits, "problems": problems}, text, as_json)
    if problems:
        raise typer.Exit(1)


@app.command()
def push(name: Name, split: Split = None, settings: Settings = None) -> None:
    """Copy a set's shards from this machine to data.url; what is there already is not sent again.

    Example: denoise data push kodak -S data.url=s3://bucket/shards
    """
    from pipelines.datasets.sync import push as push_split

    config = configuration(settings)
    name, split = set_and_wanted_split(name, split)
    for split_name in _local_splits(config, name, split):
        say(push_split(config, name, split_name))


@app.command()
def pull(name: Name, split: Split = None, settings: Settings = None) -> None:
    """Copy a set's shards from data.url to data/shards; the same command resumes an interrupted one.

    Example: denoise data pull kodak -S data.url=s3://bucket/shards
    """
    from pipelines.datasets.sync import pull as pull_split

    config = configuration(settings)
    name, split = set_and_wanted_split(name, split)
    for split_name in _splits(config, name, split):
        say(str(pull_split(config, name, split_name)))


@app.command()
def make(
    split: Annotated[str, typer.Option(help="train, val or test.")],
    out: Annotated[Path, typer.Option(help="JSON file of the sets made here, by which the next call knows them.")],
    settings: Settings = None,
) -> None:
    """Fetch and shard the sets of params.yaml, as a stage of the pipeline; what was made by hand stays as it is.

    Example: denoise data make --split train --out data/made/train.json
    """
    from denoise.files import write_json
    from pipelines.datasets.prepare import make_sets

    write_json(out, make_sets(configuration(settings), checked(split), out))


@app.command()
def versions(
    out: Annotated[Path, typer.Option(help="Folder for train.json, val.json and test.json.")],
    settings: Settings = None,
) -> None:
    """Write which version of each set of params.yaml is there, your own too, as a stage of the pipeline.

    Example: denoise data versions --out data/versions
    """
    from denoise.files import write_json
    from pipelines.datasets.layout import SPLITS
    from pipelines.datasets.prepare import set_versions

    config = configuration(settings)
    for split in SPLITS:
        present = set_versions(config, split)
        write_json(out / f"{split}.json", present)
        for name, digest in present.items():
            print(f"{split}  {name}  {digest}")


def _splits(config: "Config", name: str, split: str | None) -> list[str]:
    """Return the split, or those that a set has where the configuration reads it from."""
    if config.data.url is None:
        return _local_splits(config, name, split)
    if split is not None:
        return [checked(split)]
    return _remote_splits(config, name)


def _local_splits(config: "Config", name: str, split: str | None) -> list[str]:
    from pipelines.datasets.hints import how_to_make
    from pipelines.datasets.layout import SPLITS, local_names, shard_folder

    if split is not None:
        return [checked(split)]
    root = Path(config.data.root)
    splits = [split_name for split_name in SPLITS if shard_folder(root, split_name, name).is_dir()]
    if not splits:
        present = {other for split_name in SPLITS for other in local_names(root, split_name)}
        raise UserError(f"{name} is not in {root / 'shards'}; {how_to_make(name, None, present)}.")
    return splits


def _remote_splits(config: "Config", name: str) -> list[str]:
    from pipelines.datasets.layout import SPLITS, open_remote
    from pipelines.storage.base import NotFoundError

    splits = []
    for split in SPLITS:
        try:
            open_remote(config, split, name)
        except NotFoundError:
            continue
        splits.append(split)
    if not splits:
        raise UserError(
            f"{name} is not at {config.data.url}; put it there with `denoise data push {shlex.quote(name)}`."
        )
    return splits
