"""MLflow's and Optuna's pages in a real browser: what a user sees after a training, and of a sweep."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.support.ui import WebDriverWait

from pipelines.registry import versions
from pipelines.tracking.client import existing_run_id, resolve_uri
from pipelines.tracking.journal import Journal
from pipelines.tracking.lifecycle import tracked_run
from pipelines.tracking.logger import MlflowLogger
from pipelines.tracking.runs import RunSpec
from pipelines.tracking.server import start_server, stop_server, wait_until_up
from pipelines.tuning.space import Dimension, Sweep
from pipelines.tuning.study import Study
from tests.pipelines.mlflow_helpers import free_port, make_model, scores

ROOT = Path(__file__).parents[2]
WAIT = 60  # seconds for a page to show something
CHART = ".js-plotly-plot .main-svg"
BOX = ".ag-row input.ag-checkbox-input"  # selects a run; the other boxes of its row hide and pin it


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
    browser.get("about:blank")  # an address that differs after its # alone would not load the page again
    browser.get(url)
    return shown(browser, wanted, image)


def shown(browser, wanted, image=None):
    """Return the text of the open page once it shows all that is wanted; if it never does, keep an image of it."""
    text = ""

    def complete(browser):
        nonlocal text
        text = browser.find_element("tag name", "body").text
        return all(word in text for word in wanted)

    try:
        until(browser, complete)
    except TimeoutException:
        if image:
            browser.save_screenshot(str(image))
        missing = [word for word in wanted if word not in text]
        raise AssertionError(f"{browser.current_url} never showed {missing}: {text[:1000]}") from None
    return text


def until(browser, condition):
    """Return what the condition of the browser is once it holds; an element may be drawn anew meanwhile."""
    return WebDriverWait(browser, WAIT, 0.1, [WebDriverException]).until(condition)


def click(browser, path):
    """Click an element of this XPath as soon as that is possible."""
    until(browser, lambda browser: browser.find_element("xpath", path).click() is None)


def draws_a_chart(browser):
    return until(browser, lambda browser: browser.find_elements("css selector", CHART))


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
    assert draws_a_chart(browser)


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


NAME = "denoise-gauss25"


@pytest.fixture(scope="module")
def project(tmp_path_factory, call, denoise_fork):
    """A project with two finished runs, whose models are registered and scored; version 1 is the champion."""
    folder = tmp_path_factory.mktemp("a project #1")
    uri = resolve_uri("sqlite:///mlflow.db", folder)
    rng = np.random.default_rng(0)
    for seed, psnr in enumerate((28.0, 29.0)):
        spec = RunSpec(uri, "denoise", f"n2n-gauss25-{seed}", params={"train.lr": 0.001 * (seed + 1)})
        journal = folder / "runs" / "ray" / spec.name / "journal"
        with tracked_run(spec, journal):
            log = MlflowLogger(spec, journal, system_metrics=False)
            for step in (100, 200, 300):
                log.log_metrics(step, {"loss": 1 / step, "val_psnr": psnr - 10 / step})
                log.log_image("validation", rng.integers(0, 255, (64, 192, 3), dtype=np.uint8), step)
            assert log.close(60)
            model = make_model(folder / "models" / str(seed), "gauss25", seed)
            Journal(journal).set_model(model, {"val_psnr": psnr}, np.zeros((1, 3, 32, 32), np.float32))
        run_id = existing_run_id(uri, "denoise", spec.name)
        versions.register(uri, model, scores(model, psnr), run_id)
    call(*denoise_fork, "models", "promote", NAME, "--version", "1", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def printed(project, denoise):
    """The addresses that ``denoise ui`` prints, by what they show."""
    page = subprocess.Popen(
        [*denoise, "ui", "--port", str(free_port())],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    yield {what: re.search(r"http://\S+", page.stdout.readline())[0] for what in ("runs", "charts", "models")}
    page.terminate()
    assert page.wait(60) == 0


def test_the_printed_addresses_open_on_runs_and_charts(browser, printed, tmp_path):
    text = text_of(browser, printed["runs"], "n2n-gauss25-0", "n2n-gauss25-1", image=tmp_path / "runs.png")
    assert "AI Gateway" not in text  # as on the pages for language models
    text = text_of(browser, printed["charts"], "loss", "val_psnr", image=tmp_path / "charts.png")
    assert "AI Gateway" not in text
    assert draws_a_chart(browser)
    assert NAME in text_of(browser, printed["models"], "Registered Models", NAME)


def test_two_runs_are_compared(browser, printed, tmp_path):
    text_of(browser, printed["runs"], "n2n-gauss25-0", "n2n-gauss25-1")

    def both_are_selected(browser):
        for box in browser.find_elements("css selector", f"{BOX}:not(:checked)"):
            box.click()
        return len(browser.find_elements("css selector", f"{BOX}:checked")) == 2

    until(browser, both_are_selected)
    click(browser, "//button[normalize-space()='Compare']")
    wanted = ("Comparing 2 Runs", "n2n-gauss25-0", "n2n-gauss25-1", "train.lr", "0.001", "0.002", "val_psnr")
    text = shown(browser, wanted, tmp_path / "compare.png")
    assert all(word in text for word in wanted)


def test_each_validation_image_is_there_once(browser, printed, project, tmp_path):
    uri = resolve_uri("sqlite:///mlflow.db", project)
    run_id = existing_run_id(uri, "denoise", "n2n-gauss25-1")
    page = printed["runs"].replace("/runs?", f"/runs/{run_id}/artifacts?")
    text_of(browser, page, "images")
    click(browser, "//*[text()='images']")
    names = [f"validation-step-{step:06d}.png" for step in (100, 200, 300)]
    text = shown(browser, names)
    assert text.count("validation") == 3
    click(browser, f"//*[text()='{names[-1]}']")
    width = "return [...document.images].some(image => image.naturalWidth == 192)"
    assert until(browser, lambda browser: browser.execute_script(width))


def test_another_model_is_promoted_and_rolled_back(browser, printed, project, call, denoise_fork, tmp_path):
    def denoise(*words):
        return call(*denoise_fork, "models", *words, cwd=project)

    page = f"{printed['models'].partition('?')[0]}/{NAME}?workflowType=machine_learning"
    for words, champion, action in (
        ((), "1", '"promote"'),
        (("promote", NAME), "2", '"promote"'),
        (("rollback", NAME), "1", '"rollback"'),
    ):
        if words:
            denoise(*words)
        text = text_of(browser, page, "champion", action, image=tmp_path / f"{'-'.join(words) or 'first'}.png")
        rows = dict(re.findall(r"Version (\d)\n(.*?)(?=Version \d\n|$)", text, re.DOTALL))
        assert [number for number in rows if "@ champion" in rows[number]] == [champion]
    moves = json.loads(denoise("show", NAME, "--json"))["moves"]
    assert [(move["action"], move["from"], move["to"]) for move in moves] == [
        ("promote", None, "1"),
        ("promote", "1", "2"),
        ("rollback", "2", "1"),
    ]


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
