"""Moves of @champion at the same time, through a server that has no lock, and moves of processes that were killed."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow import MlflowClient

from denoise.errors import UserError
from pipelines.registry import moves
from pipelines.registry import versions as registry
from pipelines.registry.promotion import promote, rollback
from pipelines.tracking import client as tracking
from tests.pipelines.mlflow_helpers import log_a_model, new_noise, scores, shared_uri

PSNR = (30.0, 30.5, 31.0)  # of versions 1, 2 and 3


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


@pytest.fixture
def name(uri: str, tmp_path: Path) -> str:
    """A model of three versions, each better than the one before; the first is the champion."""
    noise = new_noise()
    for seed, psnr in enumerate(PSNR):
        run_id, model = log_a_model(uri, tmp_path, noise, seed)
        registry.register(uri, model, scores(model, psnr), run_id)
    promote(uri, f"denoise-{noise}", 1)
    return f"denoise-{noise}"


def try_to_promote(uri: str, name: str, version: int) -> str:
    """Promote a version and return what became of it."""
    try:
        return "promoted" if promote(uri, name, version)["changed"] else "is champion"
    except UserError as error:
        return str(error).partition(": 3")[0]


def chain(uri: str, name: str) -> list[str | None]:
    """Return the champions that a model had by its audit, which must have neither gaps nor double numbers."""
    records = registry.show(uri, name)["moves"]
    numbers = [record["number"] for record in records]
    assert numbers == sorted(set(numbers))
    for before, after in pairwise(records):
        assert after["from"] == before["to"]
        assert after["psnr"] > before["psnr"]
        assert after["previous_psnr"] == before["psnr"]
    assert not any(moves.PENDING in record for record in records)
    assert not moves.read_trail(tracking.client(uri), name).pending
    return [record["to"] for record in records]


def test_of_promotions_at_the_same_time_the_better_model_stays(uri, name, server):
    server.start()
    api = tracking.client(uri)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            trail = moves.read_trail(api, name)
            for key in trail.records.keys() - {min(trail.records)}:
                api.delete_registered_model_tag(name, key)
            api.set_registered_model_alias(name, "champion", "1")
            outcomes = list(pool.map(lambda version: try_to_promote(server.address, name, version), (2, 3)))
            assert outcomes[1] == "promoted"
            assert registry.show(uri, name)["champion"] == "3"
            assert outcomes[0] in ("promoted", f"{name} version 2 is not promoted: it is not better")
            assert chain(uri, name) == (["1", "2", "3"] if outcomes[0] == "promoted" else ["1", "3"])


REQUESTS = (
    "get_registered_model",
    "set_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_tag",
)


class Between:
    """Lets something happen before one of the requests that a promotion sends, which waits that long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, position: int, happen) -> None:
        self.left, self.happen, self.happened = position, happen, False
        for request in REQUESTS:
            monkeypatch.setattr(MlflowClient, request, self.wrap(getattr(MlflowClient, request)))

    def wrap(self, request):
        def wrapped(*arguments, **keywords):
            self.left -= 1
            if self.left == 0:
                self.happened = True
                self.happen()
            return request(*arguments, **keywords)

        return wrapped


@pytest.mark.parametrize("first", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_promotion_that_another_one_overtakes_at_any_point_ends_with_the_better_model(
    uri, name, server, monkeypatch, first
):
    """The one that waits counts as killed, so the other one takes over; then it goes on."""
    server.start()
    monkeypatch.setattr(moves, "PATIENCE", 0.0)
    monkeypatch.setattr(moves, "PAUSE", 0.0)
    api, second = tracking.client(uri), 5 - first
    for position in range(1, 30):
        trail = moves.read_trail(api, name)
        for key in trail.records.keys() - {min(trail.records)}:
            api.delete_registered_model_tag(name, key)
        api.set_registered_model_alias(name, "champion", "1")
        with monkeypatch.context() as patch:
            other = Between(patch, position, lambda: try_to_promote(server.address, name, second))
            try_to_promote(server.address, name, first)
        if not other.happened:
            break
        assert registry.show(uri, name)["champion"] == "3", position
        assert chain(uri, name) in (["1", "2", "3"], ["1", "3"]), position
    assert position > 7


@pytest.mark.parametrize("after", [False, True])
def test_the_next_move_ends_what_a_killed_process_has_begun(uri, name, monkeypatch, after):
    def kill(self, name, alias, version):
        if after:
            set_alias(self, name, alias, version)
        os.kill(os.getpid(), signal.SIGKILL)

    set_alias = MlflowClient.set_registered_model_alias
    process = os.fork()
    if not process:
        MlflowClient.set_registered_model_alias = kill
        promote(uri, name, 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert len(moves.read_trail(tracking.client(uri), name).pending) == 1
    monkeypatch.setattr(moves, "PATIENCE", 0.0)
    assert try_to_promote(uri, name, 3) == "promoted"
    assert chain(uri, name) == (["1", "2", "3"] if after else ["1", "3"])
    assert rollback(uri, name)["version"] == ("2" if after else "1")


def test_records_of_older_releases_and_tags_of_others_are_read(uri, name):
    api = tracking.client(uri)
    for key, text in {
        "promotion.0007": json.dumps({"action": "promote", "who": "ada", "when": "", "from": "1", "to": "2"}),
        "promotion.x": "{}",
        "promotion.0008": "[" * 10_000,
        "promotion.0009": "[]",
        "promotion.note": "hello",
    }.items():
        api.set_registered_model_tag(name, key, text[:4000])
    api.set_registered_model_alias(name, "champion", "2")
    assert [(record["number"], record["to"]) for record in registry.show(uri, name)["moves"]] == [(1, "1"), (7, "2")]
    assert promote(uri, name, 3)["previous"] == "2"
    assert [record["number"] for record in registry.show(uri, name)["moves"]] == [1, 7, 8]
