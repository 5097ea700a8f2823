import json
from pathlib import Path

import numpy as np
import pytest

from denoise.config import load_config
from denoise.data.shards import Shards
from denoise.images.io import read_image
from pipelines.datasets.preview import contact_sheet, describe, table


@pytest.fixture
def config(project):
    return load_config(Path("params.yaml"))


def test_counts_and_sizes_of_a_set(config, project):
    preview = describe(config, "small", "train")
    shards = Shards.open(project / "data/shards/train/small")
    assert (preview["samples"], preview["shards"], preview["digest"]) == (5, len(shards.entries), shards.digest)
    assert preview["modes"] == {"RGB": 3, "L": 2}
    assert (preview["smallest_side"], preview["largest_side"]) == (96, 128)
    assert sum(preview["sizes"].values()) == 5
    text = table([preview])
    assert "train: 5 samples" in text
    assert shards.digest in text


def test_the_contact_sheet_shows_every_image(config, tmp_path):
    sheet = read_image(contact_sheet(config, "small", ["train", "val"], tmp_path / "deep" / "sheet.png")).pixels
    columns = [8 + column * 168 for column in range(6)]
    for row, filled in ((8, 6), (8 + 184, 4)):  # two rows: ten images, six in a row
        tiles = [sheet[row : row + 160, left : left + 160] for left in columns]
        assert [bool((tile.min(axis=(0, 1)) < 250).any()) for tile in tiles] == [True] * filled + [False] * (6 - filled)
    assert np.ptp(sheet[8:168, 8:168]) > 50


def test_the_commands_answer(project, call):
    preview = json.loads(call("denoise", "data", "show", "small", "--json", cwd=project))
    assert [split["split"] for split in preview["splits"]] == ["train", "val"]
    assert (project / preview["sheet"]).is_file()
    assert json.loads(call("denoise", "data", "verify", "small", "--json", cwd=project))["problems"] == []
    path = project / "data/shards/val/small/000000.tar"
    path.write_bytes(path.read_bytes()[:-1])
    answer = json.loads(call("denoise", "data", "verify", "small", "--json", cwd=project, code=1))
    assert len(answer["problems"]) == 1
    assert "000000.tar" in answer["problems"][0]
