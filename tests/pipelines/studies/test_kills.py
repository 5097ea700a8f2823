"""A study whose driver and processes are killed goes on, and ends with the same table."""

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

ROWS = [{"name": loss, "config": {"method": {"name": "n2n", "loss_name": loss}}} for loss in ("l1", "l2", "l0")]
STUDY = {
    "title": "Three losses",
    "config": {
        "net": "cnn5",
        "ray": {"workers": 1},
        "train": {"crop": 32, "batch_size": 2, "steps": 400, "checkpoint_every": 40},
        "data": {"train": ["small"], "val": [], "test": ["small"], "allow_overlap": ["small"]},
    },
    "rows": ROWS,
    "budgets": {"smoke": {"seeds": [0, 1]}},
}


def run(denoise):
    return subprocess.Popen(
        [*denoise, "study", "run", "mine.yaml", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def figures(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return json.loads(out)["rows"], err


def kill_all(process, only=""):
    """Kill the processes below one, and itself unless only those with a text in their command line are meant."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if only in " ".join(child.cmdline()):
                    child.kill()
    if not only:
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_of_driver_and_workers_leave_the_same_table(project, denoise, monkeypatch):
    (project / "mine.yaml").write_text(yaml.safe_dump(STUDY))
    undisturbed = project / "undisturbed"
    undisturbed.mkdir()
    for name in ("mine.yaml", "params.yaml", "data"):
        (undisturbed / name).symlink_to(project / name)
    (project / "data" / "shards" / "test").mkdir()
    (project / "data" / "shards" / "test" / "small").symlink_to(project / "data" / "shards" / "val" / "small")

    def results():
        return len(list(Path("studies/mine/smoke/cells").glob("*.json")))

    for wanted in (1, 3):  # the driver with everything below it, in the middle of a training
        process = run(denoise)
        while results() < wanted and process.poll() is None:
            time.sleep(0.2)
        time.sleep(1)
        kill_all(process)
        process.communicate()
    process = run(denoise)  # then one process that trains
    while results() < 4 and process.poll() is None:
        time.sleep(0.2)
    kill_all(process, only="ray::ImplicitFunc")
    rows, err = figures(process)
    assert "6 results" in err
    monkeypatch.chdir(undisturbed)
    assert rows == figures(run(denoise))[0]
    assert len({json.dumps(row["scores"]) for row in rows}) == len(rows)
