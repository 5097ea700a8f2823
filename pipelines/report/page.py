"""The page of the report: fill its template from scores, trainings and images."""

import base64
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from denoise.config import Config, flatten, to_dict
from pipelines.report.curves import Chart
from pipelines.report.figures import ComparedImage, MethodResult, crop_centre, encode_png, load_images
from pipelines.report.inputs import Evaluation, Training
from pipelines.report.template import page_template

MAX_SIDE = 512  # pixels; a larger image is shown by its middle, at its own resolution, so that the page stays loadable
MAX_ROWS = 600  # of the table of images, over all sets
SETTINGS = {  # key of params.yaml -> its name on the page
    "noise": "noise",
    "data.train": "training set",
    "data.colour": "colour",
    "net": "network",
    "train.steps": "steps",
    "train.batch_size": "batch size",
    "train.crop": "crop, pixels",
    "train.optimizer": "optimizer",
    "train.lr": "learning rate",
    "train.schedule": "schedule",
    "train.precision": "precision",
    "ray.workers": "workers",
    "seed": "seed",
}
CHOICE_FIELDS = ("method.", "net.")  # what keys of a method's or a network's own fields begin with
# Keys that say where a training ran, not what it trained: left out of the commands that repeat it.
NOT_REPEATED = ("tracking.", "ray.", "compare", "evaluate.", "data.root", "data.mirror")


def render(
    title: str,
    evaluations: Sequence[Evaluation],
    trainings: Sequence[Training],
    charts: Sequence[Chart],
    images: Sequence[ComparedImage],
) -> str:
    """Return the page as HTML that needs no other file; the same input gives the same text."""
    groups = _groups(evaluations)
    embedded, views, cropped = _embed_images(images)
    return page_template("report.html.jinja").render(
        title=title,
        summary=[_summarise(group) for group in groups],
        noises={noise: _describe_noise(noise) for noise in _distinct(evaluations, "noise")},
        sets={evaluation.data: len(evaluation.images) for evaluation in evaluations},
        protocols={protocol: _describe_protocol(protocol) for protocol in _distinct(evaluations, "protocol")},
        methods={method: _describe_method(method) for method in _distinct(evaluations, "method")},
        groups=groups,
        best={max(group, key=lambda evaluation: evaluation.mean.psnr).file for group in groups if len(group) > 1},
        tables=_image_tables(groups),
        charts=charts,
        trainings=trainings,
        settings=_settings(trainings),
        commands=_commands(evaluations, trainings),
        images=embedded,
        views=views,
        image_count=len(images),
        test_image_count=sum(len(_image_names(group)) for group in groups),
        max_side=MAX_SIDE if cropped else None,
    )


def _distinct(items: Iterable[Evaluation | ComparedImage], label: str) -> list[str]:
    """Return the different values of an attribute, in order."""
    return list(dict.fromkeys(getattr(item, label) for item in items))


def _groups(evaluations: Iterable[Evaluation]) -> list[list[Evaluation]]:
    """Return the evaluations that may be compared with each other: same noise, data and protocol."""
    groups: dict[tuple[str, str, str], list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault((evaluation.noise, evaluation.data, evaluation.protocol), []).append(evaluation)
    return list(groups.values())


def _image_names(group: Iterable[Evaluation]) -> list[str]:
    return list(dict.fromkeys(scores.name for evaluation in group for scores in evaluation.images))


def _summarise(group: Sequence[Evaluation]) -> str:
    """Return the sentences that head the page: the mean PSNR of every method, and its distance from n2c."""
    first = group[0]
    count = len(first.images)
    images = f"the {count} test images" if count > 1 else "the test images"
    restored = _join([f"{evaluation.mean.psnr:.2f} dB restored by {evaluation.method}" for evaluation in group])
    text = f"On {images} of {first.data} with {_describe_noise(first.noise)}, "
    text += f"the mean PSNR is {first.mean.noisy_psnr:.2f} dB noisy, {restored} (protocol {first.protocol})."
    supervised = next((evaluation for evaluation in group if evaluation.method == "n2c"), None)
    others = [evaluation for evaluation in group if evaluation is not supervised]
    if supervised and others:
        gaps = {evaluation.method: evaluation.mean.psnr - supervised.mean.psnr for evaluation in others}
        parts = [f"{method} is {abs(gap):.2f} dB {'below' if gap < 0 else 'above'}" for method, gap in gaps.items()]
        text += f" {_join(parts)} n2c, which is trained with clean images."
    return text


def _describe_noise(name: str) -> str:
    """Return what ``gauss25``, ``gauss5_50`` or ``clippedgauss25`` means; another name stays as it is."""
    if match := re.fullmatch(r"(clipped)?gauss([\d.]+)(?:_([\d.]+))?", name):
        sigma = f"sigma {match[2]}/255" if match[3] is None else f"sigma uniform in {match[2]}/255 to {match[3]}/255"
        return f"additive Gaussian noise of {sigma}{', clipped' if match[1] else ''}"
    return f"{name} noise"


def _describe_protocol(name: str) -> str:
    from denoise.evaluate import PROTOCOLS

    return PROTOCOLS[name].summary if name in PROTOCOLS else ""


def _describe_method(name: str) -> dict[str, str]:
    """Return the first line of the method's module, and the views that the method may see."""
    from denoise.methods import METHODS

    if name not in METHODS:
        return {"about": "", "sees": ""}
    about = (sys.modules[METHODS[name].__module__].__doc__ or "").strip().splitlines()[0]
    return {"about": about, "sees": _join([str(view) for view in METHODS[name]().needs])}


def _image_tables(groups: Sequence[Sequence[Evaluation]]) -> list[dict[str, Any]]:
    """Return the tables of single images: for each set its images, for each image its methods; MAX_ROWS in all."""
    tables, rows_left = [], MAX_ROWS
    for group in groups:
        names = _image_names(group)
        page_names = names[: max(0, rows_left) // len(group)]
        rows_left -= len(page_names) * len(group)
        images = [
            (name, [(evaluation.method, scores) for evaluation in group if (scores := evaluation.image(name))])
            for name in page_names
        ]
        if names:
            tables.append({"first": group[0], "images": images, "total": len(names)})
    return tables


def _settings(trainings: Sequence[Training]) -> list[tuple[str, list[str]]]:
    """Return the table of settings: the usual ones, then the fields of methods and nets."""
    fields = sorted({key for training in trainings for key in training.settings if key.startswith(CHOICE_FIELDS)})
    labels = {**SETTINGS, **{key: key for key in fields}}
    return [
        (label, [_text(training.settings[key]) if key in training.settings else "–" for training in trainings])
        for key, label in labels.items()
        if any(key in training.settings for training in trainings)
    ]


def _commands(evaluations: Sequence[Evaluation], trainings: Sequence[Training]) -> list[tuple[str, list[str]]]:
    """Return (purpose, commands): the whole pipeline, then each of its steps alone."""
    models = {training.name: "/".join(training.folder.parts[-2:]) for training in trainings}
    train = [shlex.join(["denoise", "train", *_overrides(training)]) for training in trainings]
    evaluate = [
        shlex.join(["denoise", "evaluate", models.get(row.method, "MODEL"), *_options(row)]) for row in evaluations
    ]
    restore = ["denoise", "restore", "noisy.png", "-o", "restored.png", "--model", next(iter(models.values()), "MODEL")]
    return [
        ("Everything on this page, from the parameters in params.yaml", ["dvc repro"]),
        ("Each training alone", train),
        ("Each row of the table alone", evaluate),
        ("An image of your own", [shlex.join(restore)]),
    ]


def _options(evaluation: Evaluation) -> list[str]:
    return ["--data", evaluation.data, "--protocol", evaluation.protocol]


def _overrides(training: Training) -> list[str]:
    """Return KEY=VALUE of the method, the noise and the training set, and of all that differs from the defaults."""
    defaults = flatten(to_dict(Config()))
    always = ("method", "noise", "data.train")
    changed = [
        key
        for key, value in training.settings.items()
        if (key in defaults or key.startswith(CHOICE_FIELDS))
        and defaults.get(key) != value
        and not key.startswith(NOT_REPEATED)
    ]
    keys = dict.fromkeys([*(key for key in always if key in training.settings), *changed])
    return [f"{key}={_text(training.settings[key], ',')}" for key in keys]


def _embed_images(
    images: Sequence[ComparedImage],
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], bool]:
    """Return the images by id, each embedded once, the views made of them, and whether any image was cropped."""
    embedded: dict[str, dict[str, Any]] = {}
    ids: dict[bytes, str] = {}
    views, cropped = [], False
    ambiguous = [label for label in ("data", "noise", "protocol") if len(_distinct(images, label)) > 1]
    for image in images:
        name = image.name
        if ambiguous:
            name += f" ({', '.join(getattr(image, label) for label in ambiguous)})"
        for result in image.results:
            view = _view(name, result)
            for kind, pixels in load_images(result).items():
                middle = crop_centre(pixels, MAX_SIDE)
                cropped |= middle.size != pixels.size
                png = encode_png(middle)
                view[kind] = ids.setdefault(png, f"image-{len(ids)}")
                embedded.setdefault(
                    view[kind],
                    {
                        "source": f"data:image/png;base64,{base64.b64encode(png).decode()}",
                        "alt": f"{name}, {view['titles'][kind]}",
                        "caption": view["captions"][kind],
                        "width": middle.width,
                        "height": middle.height,
                    },
                )
            views.append(view)
    return embedded, views, cropped


def _view(name: str, result: MethodResult) -> dict[str, Any]:
    """Return what the viewer shows beside the three images of one method."""
    scores = result.scores
    captions = {
        "noisy": f"{scores.noisy_psnr:.2f} dB, SSIM {scores.noisy_ssim:.3f}",
        "restored": f"{scores.psnr:.2f} dB ({scores.gain:+.2f}), SSIM {scores.ssim:.3f}",
        "clean": "reference",
    }
    titles = {"noisy": "noisy", "restored": f"restored by {result.method}", "clean": "clean"}
    return {"image": name, "method": result.method, "captions": captions, "titles": titles}


def _text(value: object, comma: str = ", ") -> str:
    return comma.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
