"""Replay of a journal: what an interrupted attempt sent in part is sent once."""

import numpy as np
import pytest

from pipelines.tracking import client as tracking
from pipelines.tracking.client import artifact_root
from pipelines.tracking.journal import Journal
from pipelines.tracking.logger import JournalReplay
from pipelines.tracking.runs import RunSpec, get_or_create_run
from tests.pipelines.mlflow_helpers import history, images, shared_uri

IMAGE = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def test_an_image_whose_upload_was_interrupted_is_sent_again(uri, tmp_path):
    journal, run_id = Journal(tmp_path), get_or_create_run(RunSpec(uri, "logs", "cut"))
    for step in (1, 3):
        journal.append_image("val", IMAGE, step)
    api = tracking.client(uri)
    JournalReplay(api, run_id, journal).send()
    last = artifact_root(uri) / run_id / "artifacts" / "images" / "val-step-000003.png"
    whole = last.read_bytes()
    last.write_bytes(whole[:20])  # what a kill leaves
    for sent in (1, 0):
        replay = JournalReplay(api, run_id, journal)
        replay.send()
        assert replay.images == sent
        assert last.read_bytes() == whole
    assert images(uri, run_id) == ["val-step-000001.png", "val-step-000003.png"]


def test_an_image_that_an_earlier_version_sent_is_not_sent_again(uri, tmp_path):
    journal, run_id = Journal(tmp_path / "journal"), get_or_create_run(RunSpec(uri, "logs", "0.1.0"))
    journal.append_image("val/a", IMAGE, 3)
    api = tracking.client(uri)
    for suffix in (".png", "+compressed.webp"):
        file = tmp_path / f"val~a+step+3+timestamp+1795618024199+1fe42c79-ed41-576f-bc9f-f034796c98d3{suffix}"
        file.write_bytes(b"image")
        api.log_artifact(run_id, file, "images")
    replay = JournalReplay(api, run_id, journal)
    replay.send()
    assert replay.images == 0


def test_a_dry_run_counts_and_sends_nothing(uri, tmp_path):
    journal, run_id = Journal(tmp_path), get_or_create_run(RunSpec(uri, "logs", "dry run"))
    journal.append_metrics(0, {"loss": 1.0, "lr": 0.1})
    journal.append_image("val", IMAGE, 0)
    replay = JournalReplay(tracking.client(uri), run_id, journal, dry_run=True)
    replay.send()
    assert (replay.metrics, replay.images) == (2, 1)
    assert history(uri, run_id, "loss") == []
    assert images(uri, run_id) == []
