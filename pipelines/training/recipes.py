"""Published training recipes by name: one YAML file each in recipes/, laid over params.yaml by ``preset=NAME``."""

from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from denoise.errors import UsageError, nearest


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Attributes:
        name: what the user types; the name of the file.
        title: what it trains, in one line.
        source: the paper or code that the numbers come from, and the figures it reports.
        note: what differs from the source and why, with converted units; empty where there is nothing to say.
        config: the keys of params.yaml that it sets, as nested plain data.
    """

    name: str
    title: str
    source: str
    note: str
    config: dict[str, Any]


def names() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def recipes() -> dict[str, Recipe]:
    """Return all recipes by name."""
    return {name: _read(name) for name in names()}


def load_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        UsageError: there is none of that name; the message names the nearest one.
    """
    known = names()
    if name not in known:
        raise UsageError(f"preset={name} is not known{nearest(name, known)}; `denoise presets` lists all {len(known)}.")
    return _read(name)


def describe(recipe: Recipe) -> str:
    """Return a recipe as text for people: what it trains, where it comes from, and the keys that it sets."""
    import yaml

    parts = [recipe.title, recipe.source.strip(), recipe.note.strip(), yaml.safe_dump(recipe.config, sort_keys=False)]
    return "\n\n".join(part.strip() for part in parts if part)


def _folder() -> Traversable:
    return files("pipelines.training") / "recipes"


def _read(name: str) -> Recipe:
    import yaml

    tree = yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return Recipe(name, tree["title"], tree["source"], tree.get("note", ""), tree["config"])
