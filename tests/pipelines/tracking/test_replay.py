"""Replay of a journal: what an interrupted attempt sent in part is sent once."""

import numpy as np
import pytest

from pipelines.tracking import client as tracking
from pipelines.tracking.journal import Journal
from pipelines.tracking.logger import JournalReplay
from pipelines.tracking.runs import RunSpec, get_or_create_run
from tests.pipelines.mlflow_helpers import history, images, shared_uri

IMAGE = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def test_an_image_whose_upload_was_interrupted_is_logged_once(uri, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    journal, run_id = Journal(tmp_path), get_or_create_run(RunSpec(uri, "logs", "cut"))
    journal.append_image("val", IMAGE, 3)
    upload = MlflowClient.log_artifact

    def fail_at_the_second_file(self, run_id, path, *rest):
        if path.endswith(".webp"):
            raise ConnectionError
        upload(self, run_id, path, *rest)

    monkeypatch.setattr(MlflowClient, "log_artifact", fail_at_the_second_file)
    with pytest.raises(ConnectionError):
        JournalReplay(tracking.client(uri), run_id, journal).send()
    monkeypatch.undo()
    JournalReplay(tracking.client(uri), run_id, journal).send()
    assert images(uri, run_id) == ["val+step+3"]


def test_a_dry_run_counts_and_sends_nothing(uri, tmp_path):
    journal, run_id = Journal(tmp_path), get_or_create_run(RunSpec(uri, "logs", "dry run"))
    journal.append_metrics(0, {"loss": 1.0, "lr": 0.1})
    journal.append_image("val", IMAGE, 0)
    replay = JournalReplay(tracking.client(uri), run_id, journal, dry_run=True)
    replay.send()
    assert (replay.metrics, replay.images) == (2, 1)
    assert history(uri, run_id, "loss") == []
    assert images(uri, run_id) == []
