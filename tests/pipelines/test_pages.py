"""MLflow's and Optuna's pages in a real browser: what a user sees after a training, and of a sweep."""

import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.tracking.server import start_server, stop_server, wait_until_up
from pipelines.tuning.space import Dimension, Sweep
from pipelines.tuning.study import Study
from tests.pipelines.mlflow_helpers import free_port

WAIT = 60  # seconds for a page to show something


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, or a skip where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium and its driver (Debian: chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    quiet = "no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync no-first-run"
    for flag in (*quiet.split(), "headless=new", "window-size=1400,1000", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield chrome
    chrome.quit()


@pytest.fixture(scope="module")
def site(checkout):
    """MLflow's server over the database of a small pipeline run."""
    port = free_port()
    server = start_server(f"sqlite:///{checkout}/mlflow.db", port)
    wait_until_up(server, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    stop_server(server)


def text_of(browser, url, *wanted, image=None):
    """Open a page and return its text once it shows all that is wanted."""
    browser.get(url)
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        text = browser.find_element("tag name", "body").text
        if all(word in text for word in wanted):
            if image:
                time.sleep(2)  # charts are drawn after their titles
                browser.save_screenshot(str(image))
            return text
        time.sleep(0.5)
    browser.save_screenshot(str(image)) if image else None
    raise AssertionError(f"{url} never showed {[word for word in wanted if word not in text]}: {text[:1000]}")


def champion_run(checkout):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{checkout}/mlflow.db")
    version = client.get_model_version_by_alias("denoise-gauss25", "champion")
    return client.get_run(version.run_id).info, version


def test_a_run_shows_its_parameters_data_and_status(browser, site, checkout, tmp_path):
    run, _ = champion_run(checkout)
    page = f"{site}/#/experiments/{run.experiment_id}/runs/{run.run_id}?workflowType=machine_learning"
    wanted = (run.run_name, "train.steps", "Finished", "samples")
    text = text_of(browser, page, *wanted, image=tmp_path / "run.png")
    assert all(word in text for word in wanted)


def test_a_run_shows_its_curves(browser, site, checkout, tmp_path):
    run, _ = champion_run(checkout)
    page = f"{site}/#/experiments/{run.experiment_id}/runs/{run.run_id}/model-metrics?workflowType=machine_learning"
    text_of(browser, page, "loss", "val_psnr", "images_per_second", image=tmp_path / "curves.png")
    assert browser.find_elements("css selector", ".js-plotly-plot, svg.main-svg")


def test_a_run_shows_its_images(browser, site, checkout, tmp_path):
    run, _ = champion_run(checkout)
    page = f"{site}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts?workflowType=machine_learning"
    assert "images" in text_of(browser, page, "images", image=tmp_path / "artifacts.png")


def test_a_model_shows_its_champion(browser, site, checkout, tmp_path):
    _, version = champion_run(checkout)
    text = text_of(browser, f"{site}/#/models/denoise-gauss25", "champion", image=tmp_path / "model.png")
    assert f"Version {version.version}" in text


def test_the_report_of_the_pipeline_works_in_the_browser(browser, checkout, tmp_path):
    page = (checkout / "report/index.html").as_uri()
    browser.get_log("browser")  # what other pages complained of
    text = text_of(browser, page, "n2n", "n2c", "float", image=tmp_path / "report.png")
    assert "samples" in text
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_port_of_a_running_page_is_refused(site, checkout, denoise_fork):
    port = site.rpartition(":")[2]
    done = subprocess.run(
        [*denoise_fork, "ui", "--port", port], capture_output=True, text=True, cwd=checkout, timeout=120
    )
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def dashboard(tmp_path):
    """optuna-dashboard over the study of a sweep that has pruned a trial."""
    address = f"sqlite:///{tmp_path}/optuna.db"
    space = {"train.lr": Dimension(float=(1e-5, 1e-3), log=True)}
    study = Study(address, "a sweep", Sweep("a test", space, trials=3), {})
    for psnr in (30.0, 31.0):
        study.complete(study.ask().number, {"0": {"val_psnr": psnr}}, 100)
    study.record_validation(study.ask().number, 1, 12.0, 10.0)
    study.prune(2)
    port = free_port()
    command = [Path(sys.executable).with_name("optuna-dashboard"), address, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/dashboard/studies/1"
    server.terminate()
    server.wait()


def test_a_sweep_can_be_seen_in_optunas_dashboard(browser, dashboard, tmp_path):
    wanted = ("a sweep", "val_psnr", "train.lr", "Best Trial (number=1)", "31")
    text = text_of(browser, dashboard, *wanted, image=tmp_path / "study.png")
    assert all(word in text for word in wanted)
    text = text_of(browser, f"{dashboard}/trials", "3 Trials", "Complete", "Pruned", image=tmp_path / "trials.png")
    assert text.count("Pruned") == 1
