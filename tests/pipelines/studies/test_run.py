"""A study of one's own on a real Ray and MLflow: rows that share a training, one that diverges, one that needs none."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from denoise.documents import build
from pipelines.studies.definition import Study
from tests.pipelines.processes import left_behind

TRAIN = {"crop": 32, "batch_size": 2, "steps": 30}
STUDY = {
    "title": "Two ways to score one model",
    "source": "a test",
    "sources": {"paper": "nowhere, table 1"},
    "config": {
        "method": "r2r",
        "net": {"name": "dncnn", "depth": 3},
        "train": TRAIN,
        "ray": {"workers": 1},
        "data": {"train": ["small"], "val": ["small"], "test": ["other"]},
    },
    "rows": [
        {"name": "one <pass>", "config": {"evaluate": {"passes": 1}}, "published": {"paper": {"other": 28.1234}}},
        {"name": "three passes", "config": {"evaluate": {"passes": 3}}},
        {"name": "wild", "config": {"train": {"lr": 1e30}}},
        {"name": "untrained", "config": {"method": {"name": "zs_n2n", "steps": 4}}},
    ],
    "budgets": {"smoke": {"seeds": [0]}, "short": {"seeds": [0, 1]}},
    "hold": {"always": ['psnr("three passes") > psnr("one <pass>")', 'psnr("wild") > 0']},
}


@pytest.fixture
def study(project, one_host, monkeypatch, photographs, call):
    """A folder with a study in mine.yaml, and a test set that it is not trained on."""
    for name, value in one_host.variables.items():
        monkeypatch.setenv(name, value)
    (project / "other").mkdir()
    shutil.copy(photographs / "astronaut.png", project / "other")
    call("denoise", "shard", "other", "--from", "other", "--split", "test", cwd=project)
    (project / "mine.yaml").write_text(yaml.safe_dump(STUDY))
    return project


def command(denoise, *arguments):
    return subprocess.run([*denoise, "study", *arguments], capture_output=True, text=True, timeout=300)


def test_rows_share_a_training_and_what_is_finished_is_not_run_again(study, denoise_fork):
    done = command(denoise_fork, "run", "mine.yaml", "--json")
    assert done.returncode == 1
    assert "the first that of wild: the loss is" in done.stderr
    assert "Traceback" not in done.stderr
    answer = json.loads(done.stdout)
    figures = {row["row"]: row for row in answer["rows"]}
    assert list(figures) == ["one <pass>", "three passes", "wild", "untrained"]
    assert figures["untrained"]["scores"]["other"]["psnr"] > 15
    assert [verdict["outcome"] for verdict in answer["hold"]] == ["held", "not run"]
    page = Path(answer["report"]).read_text()
    assert "one &lt;pass&gt;" in page
    assert "28.12" in page
    assert left_behind() == []
    cells = [file.read_text() for file in Path("studies/mine/smoke/cells").iterdir()]
    assert len(cells) == 4
    assert not any(str(Path.cwd()) in cell for cell in cells)  # they may be read, and the study go on, elsewhere

    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    runs = client.search_runs([client.get_experiment_by_name("denoise").experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "study-mine-smoke"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    # Two rows score one model, and the last trains none.
    assert sorted(run.data.tags["denoise.row"] for run in children) == ["one <pass> | three passes", "wild"]
    assert "index.html" in {Path(entry.path).name for entry in client.list_artifacts(parent.info.run_id, "study")}

    again = command(denoise_fork, "run", "mine.yaml", "--rows", "one <pass>", "--rows", "untrained", "--json")
    assert again.returncode == 1  # the row that failed is still in the table
    assert "2 results, 2 of them there already; 0 runs to do" in again.stderr
    assert {row["row"]: row for row in json.loads(again.stdout)["rows"]} == figures
    status = command(denoise_fork, "status", "mine.yaml").stdout
    assert "wild          seed 0  failed: the loss is" in status
    Path("page.md").write_text("# Results\n")
    for _ in range(2):  # the second time in place of the first
        assert command(denoise_fork, "report", "mine.yaml", "--into", "page.md").returncode == 0
    page = Path("page.md").read_text()
    assert page.startswith("# Results\n")
    assert page.count("### mine, budget smoke") == page.count("28.12") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "ssdn-tabel1"], "did you mean ssdn-table1"),
        (["run", "mine.yaml", "--budget", "smok"], "did you mean smoke"),
        (["run", "mine.yaml", "--rows", "untraine"], "did you mean untrained"),
        (["run", "mine.yaml", "--seeds", "a"], "whole numbers"),
        (["report", "mine.yaml"], "there is no study in studies/mine/smoke"),
    ],
)
def test_what_is_unknown_is_named_with_the_nearest(study, denoise_fork, arguments, message):
    done = command(denoise_fork, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_study_that_runs_already_is_refused(study, denoise_fork):
    from denoise.files import lock_folder

    with lock_folder(Path("studies/mine/smoke/lock"), "running the study in"):
        done = command(denoise_fork, "run", "mine.yaml")
    assert done.returncode == 1
    assert "another process is running the study in studies/mine/smoke" in done.stderr


def test_equal_minutes_are_steps_by_the_speed_of_each_row(project, tmp_path, monkeypatch):
    from pipelines.cluster import workers
    from pipelines.studies import minutes
    from pipelines.studies.definition import check_study
    from pipelines.studies.plan import cell_plans
    from pipelines.training import speed

    monkeypatch.setattr(workers, "use_assigned_device", lambda config: None)  # there is no Ray here
    monkeypatch.setattr(speed, "WARM_UP", 0.1)
    monkeypatch.setattr(speed, "MEASURED", 0.3)
    study = check_study(build(Study, {**STUDY, "config": {**STUDY["config"], "data": {"test": []}}}))
    cells = cell_plans(study, "smoke", (0,), params=Path("params.yaml"))
    assert minutes.measure_speed(cells[0], None)["images_per_second"] > 0
    (tmp_path / minutes.SPEEDS).write_text('{"three passes": 4.0}')
    measured = [cell for cell in cells if cell.row in ("three passes", "untrained")]
    assert minutes.steps_of(tmp_path, measured, 0.5) == {"three passes": 60}
