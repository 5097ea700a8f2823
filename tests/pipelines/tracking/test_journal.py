"""The journal of a run: what is appended survives kills and full disks, and comes back as it was."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import denoise
from denoise.errors import UserError
from pipelines.tracking.journal import IMAGES, METRICS, RUN, Journal
from pipelines.tracking.runs import RunSpec
from tests.mutations import Victim, mutated, sentence_of
from tests.pipelines.mlflow_helpers import make_model

pytestmark = pytest.mark.smoke

PROJECT = Path(denoise.__file__).parents[1]


def values(folder: Path) -> list[tuple[str, int, float]]:
    return [(point.key, point.step, point.value) for point in Journal(folder).all_points()]


def test_metrics_are_read_as_they_were_appended(tmp_path):
    journal = Journal(tmp_path / "new" / "journal")
    assert journal.points() == ([], 0)
    journal.append_metrics(0, {"loss": 0.1, "nan": math.nan})
    journal.append_metrics(1, {"inf": math.inf, "minus": -math.inf, "val/psnr": np.float32(0.5)})
    journal.append_metrics(1, {"loss": 7})  # a repeated step stays
    points, end = journal.points()
    assert [point.key for point in points] == ["loss", "nan", "inf", "minus", "val/psnr", "loss"]
    assert [point.step for point in points] == [0, 0, 1, 1, 1, 1]
    assert math.isnan(points[1].value)
    assert [point.value for point in (points[0], *points[2:])] == [0.1, math.inf, -math.inf, 0.5, 7.0]
    assert points[0].timestamp > 1.7e12
    assert journal.points(end) == ([], end)
    journal.append_metrics(2, {"loss": 0.2})
    assert [point.step for point in journal.points(end)[0]] == [2]
    first, position = journal.points(0, limit=1)
    assert first + journal.points(position)[0] == list(journal.all_points())


def test_a_cut_line_is_skipped_and_the_next_attempt_continues(tmp_path):
    Journal(tmp_path).append_metrics(0, {"loss": 0.0})
    with (tmp_path / METRICS).open("ab") as file:
        file.write(b'{"step": 1, "time": 5, "metrics": {"lo')
    reader = Journal(tmp_path)
    points, position = reader.points()
    assert [point.step for point in points] == [0]
    journal = Journal(tmp_path)
    for step in (2, 3):
        journal.append_metrics(step, {"loss": step})
    assert [point.step for point in reader.points(position)[0]] == [2, 3]
    assert values(tmp_path) == [("loss", 0, 0.0), ("loss", 2, 2.0), ("loss", 3, 3.0)]


@pytest.mark.parametrize("line", ["", "7", "[]", "{}", '{"step": 1}', '{"step": 1, "time": 2, "metrics": 3}', "\0\0"])
def test_a_malformed_line_is_skipped(tmp_path, line):
    (tmp_path / METRICS).write_text(f"{line}\n")
    Journal(tmp_path).append_metrics(5, {"loss": 1.0})
    assert values(tmp_path) == [("loss", 5, 1.0)]


def test_a_line_cut_by_a_full_disk_is_ended_at_the_next_append(tmp_path):
    (tmp_path / METRICS).symlink_to("/dev/full")
    journal = Journal(tmp_path)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            journal.append_metrics(0, {"loss": 0.0})
    (tmp_path / METRICS).unlink()
    (tmp_path / METRICS).write_bytes(b'{"step": 0, "ti')
    journal.append_metrics(1, {"loss": 1.0})
    assert values(tmp_path) == [("loss", 1, 1.0)]


WRITER = """
import sys
from pathlib import Path
from pipelines.tracking.journal import Journal
journal = Journal(Path(sys.argv[1]))
for step in range(10**9):
    journal.append_metrics(step, {"loss": step, "lr": 0.1})
    print(step, flush=True)
"""


def test_a_kill_loses_nothing_that_was_appended(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as writer:
        while int(writer.stdout.readline()) < 1000:
            pass
        writer.kill()
        rest = [line for line in writer.stdout.readlines() if line.endswith("\n")]
    last = int(rest[-1]) if rest else 1000
    steps = [step for key, step, _ in values(tmp_path) if key == "loss"]
    assert steps == list(range(len(steps)))
    assert len(steps) >= last + 1


def test_images_keep_their_bytes_and_their_time(tmp_path):
    source = tmp_path / "step-5.png"
    source.write_bytes(b"any bytes")
    journal = Journal(tmp_path / "journal")
    journal.append_image("val/astronaut 1", source, 5)
    journal.append_image("val", np.full((2, 3, 3), 0.5, np.float32), 0)
    (tmp_path / "journal" / IMAGES / "something else").write_bytes(b"")
    images = {image.key: image for image in Journal(tmp_path / "journal").images()}
    first, second = images["val/astronaut 1"], images["val"]
    assert len(images) == 2
    assert (first.key, first.step, first.file.read_bytes()) == ("val/astronaut 1", 5, b"any bytes")
    assert (second.key, second.step, np.load(second.file).mean()) == ("val", 0, 0.5)
    assert 1.7e12 < first.timestamp <= second.timestamp
    assert [path.name for path in (tmp_path / "journal").iterdir()] == [IMAGES] == ["pictures"]


def test_a_key_that_mlflow_would_refuse_is_refused_at_once(tmp_path):
    for key in ("a+b", "", "ö", "x" * 251, "a\n"):
        with pytest.raises(UserError, match="cannot be logged to MLflow"):
            Journal(tmp_path).append_metrics(0, {key: 1.0})
        with pytest.raises(UserError, match="cannot be logged to MLflow"):
            Journal(tmp_path).append_image(key, np.zeros((2, 2, 3)), 0)


def test_the_newest_definition_counts_with_the_first_start_time(tmp_path):
    journal = Journal(tmp_path / "journal")
    with pytest.raises(UserError, match=r"is no journal of a run: it has no run\.json"):
        journal.run_spec()
    journal.start_attempt(RunSpec("sqlite:////a.db", "e", "n", started=100, owner="h 1 2.0"))
    journal.set_status("FAILED")
    assert journal.final_status().status == "FAILED"
    second = Journal(tmp_path / "journal").start_attempt(RunSpec("http://b", "e", "n", started=200, owner="h 2 3.0"))
    assert (second.uri, second.started, second.owner) == ("http://b", 100, "h 2 3.0")
    assert journal.run_spec() == second
    assert journal.final_status() is None
    (tmp_path / "journal" / RUN).write_text('{"uri": 1}')
    with pytest.raises(UserError, match="is no journal of a run"):
        journal.run_spec()
    assert journal.start_attempt(second) == second  # a damaged one is replaced


def test_a_pending_model_is_kept_when_its_folder_gets_another(tmp_path):
    journal, model = Journal(tmp_path / "journal"), make_model(tmp_path / "model", "gauss25")
    assert journal.pending_model() is None
    weights = (model / "net.safetensors").read_bytes()
    journal.set_model(model, {"loss": 0.5}, np.ones((1, 3, 8, 8), np.float32))
    make_model(tmp_path / "model", "gauss25", seed=1)
    folder, metrics, example = journal.pending_model()
    assert (folder / "net.safetensors").read_bytes() == weights != (model / "net.safetensors").read_bytes()
    assert json.loads((folder / "model.json").read_text())
    assert (metrics, example.shape) == ({"loss": 0.5}, (1, 3, 8, 8))
    journal.remove_model()
    assert journal.pending_model() is None


@pytest.mark.parametrize("file", [RUN, "status.json", METRICS, "model/figures.json"])
def test_no_file_of_a_journal_ends_in_a_traceback(tmp_path, file):
    victim, folder = Victim(tmp_path), tmp_path / "journal"
    journal = Journal(folder)
    journal.start_attempt(RunSpec("sqlite:////a.db", "e", "n", {"a": "b"}, {"c": "d"}, started=100, owner="h 1 2.0"))
    journal.append_metrics(1, {"loss": 0.5})
    journal.set_status("FAILED")
    journal.set_model(make_model(tmp_path / "model", "gauss25"), {"loss": 0.5}, np.ones((1, 3, 8, 8), np.float32))
    for name, data in mutated(json.loads((folder / file).read_text()), *victim.names()):
        (folder / file).write_bytes(data.replace(b"\n", b"") + b"\n")
        for read in (journal.run_spec, journal.final_status, lambda: list(journal.all_points()), journal.pending_model):
            sentence_of(name, read)
    assert victim.is_there()


def test_a_damaged_example_is_one_sentence(tmp_path):
    journal = Journal(tmp_path / "journal")
    journal.set_model(make_model(tmp_path / "model", "gauss25"), {}, np.ones((1, 3, 8, 8), np.float32))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(117) + b"\n"
    for data in (b"", b"PK", b"\x80\x04N.", b"\x93NUMPY\x01\x00v\x00" + header):
        (tmp_path / "journal" / "model" / "example.npy").write_bytes(data)
        with pytest.raises(UserError, match="is damaged"):
            journal.pending_model()


def test_only_images_with_a_name_of_ours_are_sent(tmp_path):
    journal = Journal(tmp_path)
    for name in (
        "val~a+step+1+timestamp+2.npy",
        "..~..~x+step+1+timestamp+2.npy",
        "~x+step+1+timestamp+2.npy",
        "a.npy",
    ):
        (tmp_path / IMAGES).mkdir(exist_ok=True)
        (tmp_path / IMAGES / name).write_bytes(b"")
    (tmp_path / IMAGES / f"a+step+{'9' * 40}+timestamp+2.npy").write_bytes(b"")
    assert [image.key for image in journal.images()] == ["val/a"]
    with pytest.raises(UserError, match="cannot be logged"):
        journal.append_metrics(0, {"../x": 1.0})
