"""The page: what its template shows, from scores, trainings and images."""

import base64
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from denoise.config import Config, flatten, to_dict
from pipelines.report.curves import Chart
from pipelines.report.figures import ImageFile, centre, encode, load
from pipelines.report.inputs import Evaluation, Training

SIDE = 512  # a larger image is shown by its middle, at its own resolution, so that the page stays loadable
MOST_ROWS = 600  # of the table of images, over all sets
SETTINGS = {  # key of params.yaml -> what the page calls it
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
NOT_REPEATED = ("tracking.", "ray.", "compare", "evaluate.", "data.root", "data.mirror")  # where it ran, not what


def render(
    title: str,
    evaluations: Sequence[Evaluation],
    trainings: Sequence[Training],
    charts: Sequence[Chart],
    shots: Sequence[ImageFile],
) -> str:
    """Return the page as HTML that needs no other file; the same input gives the same text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipelines.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    groups = _groups(evaluations)
    images, views, cropped = _images(shots)
    return environment.get_template("report.html.jinja").render(
        title=title,
        summary=[_sentence(group) for group in groups],
        noises={each.noise: _noise_in_words(each.noise) for each in evaluations},
        sets={each.data: len(each.images) for each in evaluations},
        protocols={each.protocol: _protocol_in_words(each.protocol) for each in evaluations},
        methods={each.method: _method_in_words(each.method) for each in evaluations},
        groups=groups,
        best={each.file for group in groups if len(group) > 1 for each in [max(group, key=lambda one: one.mean.psnr)]},
        rows=_rows(groups),
        most_rows=MOST_ROWS,
        charts=charts,
        trainings=trainings,
        settings=_settings(trainings),
        commands=_commands(evaluations, trainings),
        images=images,
        views=views,
        shown=len(shots),
        scored=sum(len({scores.name for each in group for scores in each.images}) for group in groups),
        side=SIDE if cropped else None,
    )


def _groups(evaluations: Iterable[Evaluation]) -> list[list[Evaluation]]:
    """Return the evaluations that may be compared with each other: same noise, data and protocol."""
    groups: dict[tuple[str, str, str], list[Evaluation]] = {}
    for each in evaluations:
        groups.setdefault((each.noise, each.data, each.protocol), []).append(each)
    return list(groups.values())


def _sentence(group: Sequence[Evaluation]) -> str:
    first = group[0]
    count = len(first.images)
    images = f"the {count} test images" if count > 1 else "the test images"
    restored = _and([f"{each.mean.psnr:.2f} dB restored by {each.method}" for each in group])
    text = f"On {images} of {first.data} with {_noise_in_words(first.noise)}, "
    text += f"the mean PSNR is {first.mean.noisy_psnr:.2f} dB noisy, {restored} (protocol {first.protocol})."
    bound = next((each for each in group if each.method == "n2c"), None)
    others = [each for each in group if each is not bound] if bound else []
    if bound and others:
        gaps = [
            f"{each.method} is {abs(gap):.2f} dB {'below' if gap < 0 else 'above'}"
            for each in others
            for gap in [each.mean.psnr - bound.mean.psnr]
        ]
        text += f" {_and(gaps)} n2c, which is trained with clean images."
    return text


def _noise_in_words(name: str) -> str:
    """Return what ``gauss25`` or ``gauss5_50`` means; another name stays as it is."""
    if match := re.fullmatch(r"gauss([\d.]+)(?:_([\d.]+))?", name):
        sigma = f"sigma {match[1]}/255" if match[2] is None else f"sigma uniform in {match[1]}/255 to {match[2]}/255"
        return f"additive Gaussian noise of {sigma}"
    return f"{name} noise"


def _protocol_in_words(name: str) -> str:
    from denoise.evaluate import PROTOCOLS

    return PROTOCOLS[name].summary if name in PROTOCOLS else ""


def _method_in_words(name: str) -> dict[str, str]:
    """Return what the method's own file says of it, and what the method may see."""
    from denoise.methods import METHODS

    if name not in METHODS:
        return {"about": "", "sees": ""}
    about = (sys.modules[METHODS[name].__module__].__doc__ or "").strip().splitlines()[0]
    return {"about": about, "sees": _and([str(view) for view in METHODS[name]().needs])}


def _rows(groups: Sequence[Sequence[Evaluation]]) -> list[dict[str, Any]]:
    """Return the tables of single images: for each set its images, for each image its methods."""
    tables, left = [], MOST_ROWS
    for group in groups:
        names = list(dict.fromkeys(scores.name for each in group for scores in each.images))
        kept = names[: max(0, left) // len(group)]
        left -= len(kept) * len(group)
        found = [
            (name, [(each.method, scores) for each in group for scores in [each.image(name)] if scores])
            for name in kept
        ]
        if names:
            tables.append({"first": group[0], "images": found, "total": len(names)})
    return tables


def _settings(trainings: Sequence[Training]) -> list[tuple[str, list[str]]]:
    """Return the table of settings: the usual ones, then the fields of methods and nets."""
    fields = sorted({key for each in trainings for key in each.settings if key.startswith(("method.", "net."))})
    known = {**SETTINGS, **{key: key for key in fields}}
    return [
        (label, [_text(each.settings[key]) if key in each.settings else "–" for each in trainings])
        for key, label in known.items()
        if any(key in each.settings for each in trainings)
    ]


def _commands(evaluations: Sequence[Evaluation], trainings: Sequence[Training]) -> list[tuple[str, list[str]]]:
    """Return (what for, commands): the whole pipeline, then each method alone."""
    train = [shlex.join(["denoise", "train", *_overrides(each)]) for each in trainings]
    models = {each.name: "/".join(each.folder.parts[-2:]) for each in trainings}
    evaluate = [
        shlex.join(
            ["denoise", "evaluate", models.get(each.method, "MODEL"), "--data", each.data, "--protocol", each.protocol]
        )
        for each in evaluations
    ]
    model = next(iter(models.values()), "MODEL")
    return [
        ("Everything on this page, from the parameters in params.yaml", ["dvc repro"]),
        ("Each training alone", train),
        ("Each row of the table alone", evaluate),
        (
            "An image of your own",
            [shlex.join(["denoise", "restore", "noisy.png", "-o", "restored.png", "--model", model])],
        ),
    ]


def _overrides(training: Training) -> list[str]:
    """Return KEY=VALUE of what a reader wants to see and of what differs from the defaults."""
    usual = flatten(to_dict(Config()))
    named = ("method", "noise", "data.train")
    changed = [
        key
        for key, value in training.settings.items()
        if (key in usual or key.startswith(("method.", "net.")))
        and usual.get(key) != value
        and not key.startswith(NOT_REPEATED)
    ]
    keys = dict.fromkeys([*(key for key in named if key in training.settings), *changed])
    return [f"{key}={_text(training.settings[key], ',')}" for key in keys]


def _images(shots: Sequence[ImageFile]) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], bool]:
    """Return the images by id, each embedded once, the views made of them, and whether any image was cropped."""
    images: dict[str, dict[str, Any]] = {}
    known: dict[bytes, str] = {}
    views, cropped = [], False
    apart = [label for label in ("data", "noise", "protocol") if len({getattr(shot, label) for shot in shots}) > 1]
    for shot in shots:
        where = shot.name + (f" ({', '.join(getattr(shot, label) for label in apart)})" if apart else "")
        for take in shot.takes:
            scores = take.scores
            captions = {
                "noisy": f"{scores.noisy_psnr:.2f} dB, SSIM {scores.noisy_ssim:.3f}",
                "restored": f"{scores.psnr:.2f} dB ({scores.gain:+.2f}), SSIM {scores.ssim:.3f}",
                "clean": "reference",
            }
            titles = {"noisy": "noisy", "restored": f"restored by {take.method}", "clean": "clean"}
            view: dict[str, Any] = {"image": where, "method": take.method, "captions": captions, "titles": titles}
            for kind, image in load(take).items():
                middle = centre(image, SIDE)
                cropped |= middle.size != image.size
                data = encode(middle)
                view[kind] = known.setdefault(data, f"image-{len(known)}")
                images.setdefault(
                    view[kind],
                    {
                        "source": f"data:image/png;base64,{base64.b64encode(data).decode()}",
                        "alt": f"{where}, {titles[kind]}",
                        "caption": captions[kind],
                        "width": middle.width,
                        "height": middle.height,
                    },
                )
            views.append(view)
    return images, views, cropped


def _text(value: object, comma: str = ", ") -> str:
    return comma.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
