"""The templates of pages: HTML in which every value is escaped, and every name has to be given."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template


def page_template(name: str, *packages: str) -> "Template":
    """Return a template of one of the ``packages`` that hold a folder templates, or of this one, in this order."""
    import jinja2

    loaders = [jinja2.PackageLoader(package) for package in (*packages, "pipelines.report")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
