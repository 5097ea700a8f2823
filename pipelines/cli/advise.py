"""``denoise advise``: what the noise of a folder of images is, and which method fits it."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.common import AsJson, answer


def advise(
    folder: Annotated[Path, typer.Argument(help="A folder of noisy images.")],
    images: Annotated[int, typer.Option(min=1, help="Images to measure at most, evenly spread.")] = 32,
    page: Annotated[Path | None, typer.Option(help="HTML page to draw the measurement into.")] = None,
    minutes: Annotated[
        float, typer.Option("--try", min=0, help="Minutes to train as advised, to show an image restored; with --page.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the noise of a folder of images, from these alone, and name the method that is made for it.

    Example: denoise advise ~/microscope --page noise.html --try 2
    """
    from denoise.errors import UserError
    from denoise.files import write_bytes
    from pipelines.advise.advice import advise as choose
    from pipelines.advise.answer import document, text
    from pipelines.advise.folder import measure_folder
    from pipelines.advise.page import render
    from pipelines.advise.trial import try_advice

    if minutes and page is None:
        raise UserError("--try shows an image before and after on the page, but there is none; give --page FILE.html.")
    found = measure_folder(folder, images)
    advice = choose(folder, found)
    if page is not None:
        tried = try_advice(found, advice, minutes) if minutes else ()
        write_bytes(page, render(folder, found, advice, tried).encode())
    answer(document(found, advice), text(found, advice), as_json)
