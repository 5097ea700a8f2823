"""``denoise advise``: what the noise of a folder of images is, and which method fits it."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.common import AsJson, answer


def advise(
    folder: Annotated[Path, typer.Argument(help="A folder of noisy images.")],
    images: Annotated[int, typer.Option(min=1, help="Images to measure at most, evenly spread.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Measure the noise of a folder of images, from these alone, and name the method that is made for it.

    Example: denoise advise ~/microscope
    """
    from pipelines.advise.advice import advise as choose
    from pipelines.advise.answer import document, text
    from pipelines.advise.folder import measure_folder

    found = measure_folder(folder, images)
    advice = choose(folder, found)
    answer(document(found, advice), text(found, advice), as_json)
