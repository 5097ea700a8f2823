"""A stack from its file to a restored one: sharded, learnt from, restored, opened by other programs."""

import json
from pathlib import Path

import numpy as np
import tifffile

from denoise.data.shards import Shards
from denoise.denoiser import load_denoiser
from denoise.stacks.value_range import ValueRange
from tests.pipelines.cli.test_app import run

STEPS = ["train.steps=150", "train.crop=32", "train.batch_size=4", "net=cnn5", "train.lr=3e-3", "train.precision=fp32"]


def movie(frames: int = 6, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return a clean movie of moving blobs, 100 to 1100 counts above an offset of 400, and a noisy one."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    spots = rng.random((5, 4))
    clean = np.stack(
        [
            sum(np.exp(-((y - b - 0.02 * t * d) ** 2 + (x - a) ** 2) / (0.002 + 0.02 * c)) for a, b, c, d in spots)
            for t in range(frames)
        ]
    )
    clean = 500 + 1000 * clean / clean.max()
    return clean, (clean + rng.normal(0, 60, clean.shape)).astype(np.float32)


def test_a_stack_is_learnt_from_and_restored(project, denoise_fork):
    clean, noisy = movie()
    (project / "movies").mkdir()
    description = {"axes": "TYX", "unit": "um", "finterval": 0.1, "Info": "objective 63x"}
    tifffile.imwrite(project / "movies/cells.tif", noisy, imagej=True, metadata=description, resolution=(9.2, 9.2))
    run(denoise_fork, "shard", "cells", "--from", "movies", "--split", "train")
    shards = Shards.open(project / "data/shards/train/cells")
    settings = ["data.train=cells", "data.val=[]", "data.colour=grey", "noise=none", "method=nb2nb", *STEPS]
    model = Path(json.loads(run(denoise_fork, "train", "--local", "--json", *settings))["model"])
    assert load_denoiser(project / model).value_range == shards.value_range
    assert 300 < shards.value_range.low < 500
    run(denoise_fork, "restore", "movies/cells.tif", "-o", "restored.tif", "--model", model)
    with tifffile.TiffFile(project / "restored.tif") as tiff:
        assert (tiff.series[0].axes, tiff.series[0].dtype, tiff.is_imagej) == ("TYX", np.float32, True)
        assert tiff.imagej_metadata["finterval"] == 0.1
        restored = tiff.asarray()
    error, before = (np.square(movie - clean).mean() for movie in (restored, noisy))
    assert error < 0.7 * before


def test_the_range_given_at_sharding_is_that_of_the_model_and_of_its_scores(project, denoise_fork):
    _, noisy = movie(3, 48)
    (project / "movies").mkdir()
    np.save(project / "movies/cells.npy", noisy)
    run(denoise_fork, "shard", "cells", "--from", "movies", "--split", "train", "--range", "400,1600")
    settings = ["data.train=cells", "data.val=cells/train", "data.colour=grey", "noise=none", "method=n2v", *STEPS]
    model = json.loads(run(denoise_fork, "train", "--local", "--json", *settings, "train.steps=2"))["model"]
    assert load_denoiser(project / model).value_range == ValueRange(400, 1600)
    scores = [
        "evaluate",
        model,
        "--data",
        "cells/train",
        "-S",
        "data.allow_overlap=cells",
        "--noise",
        "gauss5",
        "--json",
    ]
    assert json.loads(run(denoise_fork, *scores))[0]["images_used"] == 3
    shown = json.loads(run(denoise_fork, "data", "show", "cells", "--split", "train", "--json"))
    assert "400" in json.dumps(shown)
    run(denoise_fork, "data", "show", "cells", "--split", "train", "--out", "sheet.png")
    np.save(project / "dark.npy", noisy / 1e4)
    message = run(denoise_fork, "restore", "dark.npy", "-o", "out.npy", "--model", model, "--range", "x", expect=1)
    assert "the range 'x' is none" in message
    run(denoise_fork, "restore", "dark.npy", "-o", "out.npy", "--model", model)
    assert np.load(project / "out.npy").shape == noisy.shape


def test_sets_of_photographs_and_of_floats_do_not_mix(project, denoise_fork):
    (project / "movies").mkdir()
    np.save(project / "movies/cells.npy", movie(2, 48)[1])
    run(denoise_fork, "shard", "cells", "--from", "movies", "--split", "train")
    message = run(denoise_fork, "train", "--local", "data.train=[small,cells]", expect=1)
    assert "has no range of values and another set has one" in message
    message = run(denoise_fork, "shard", "part", "--from-set", "cells/train", "--cut", "16", expect=1)
    assert "cells/train has a range of values, and no set is derived" in message
