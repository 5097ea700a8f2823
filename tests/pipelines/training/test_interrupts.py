"""Ctrl-C in every stage of a training run on Ray, as a terminal sends it: to the command and all it has started."""

import os
import signal
import subprocess

import pytest

from tests.pipelines.processes import left_behind
from tests.pipelines.training.test_on_ray import wait_for

STAGES = {
    "the check of the data": "mlflow.db",
    "the start of Ray": "runs/ray/stopped/journal/*",
    "the training": "runs/ray/stopped/checkpoints/step-00000006/manifest.json",
    "the export of the model": "runs/ray/stopped/checkpoints/step-00000012/manifest.json",
}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_ends_a_run_quietly_and_the_same_command_ends_it_well(project, denoise_at_a_terminal, stage):
    command = [*denoise_at_a_terminal, "train", "net=cnn5", "ray.workers=1", "--name=stopped"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    wait_for(lambda: list(project.glob(STAGES[stage])) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert err.rstrip().endswith("interrupted; the same command resumes from the last checkpoint.")
    assert "Traceback" not in err
    assert left_behind() == []

    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert (project / "runs/stopped/model/model.json").is_file()
