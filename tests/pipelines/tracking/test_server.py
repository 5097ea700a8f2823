"""The MLflow page: its server, its port, and its end with all processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

import denoise
from denoise.errors import UserError
from pipelines.registry import promotion
from pipelines.registry import versions as registry
from pipelines.tracking import client as tracking
from pipelines.tracking.logger import MlflowLogger
from pipelines.tracking.runs import RunSpec, get_or_create_run
from pipelines.tracking.server import check_port, run_ui
from tests.pipelines.mlflow_helpers import free_port, log_a_model, new_noise, scores, shared_uri

PROJECT = Path(denoise.__file__).parents[1]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


def test_the_error_for_a_port_in_use_names_a_free_one(uri):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} on 127\.0\.0\.1 is in use.*--port \d+\.") as refusal:
            run_ui(uri, port)
    check_port("127.0.0.1", int(str(refusal.value).rstrip(".").split()[-1]))


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("127.0.0.1", 70000, "port 70000 is no port"),
        ("no-such-host.invalid", 5000, "cannot listen on no-such-host.invalid:5000"),
        ("192.0.2.1", 5000, r"cannot listen on 192\.0\.2\.1:5000"),
    ],
)
def test_an_address_that_cannot_be_used_is_an_error(uri, host, port, sentence):
    with pytest.raises(UserError, match=sentence):
        run_ui(uri, port, host)


def test_a_uri_of_a_server_is_refused():
    with pytest.raises(UserError, match="is an MLflow server already"):
        run_ui("http://me:secret@localhost:5000", 5001)


def test_the_page_shows_what_is_in_the_database_and_ends_with_all_its_processes(uri, tmp_path):
    port = free_port()
    # A test run in the background of a script inherits that Ctrl-C is ignored; a terminal's programs do not.
    restore_ctrl_c = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{restore_ctrl_c}; from pipelines.tracking.server import run_ui; run_ui({uri!r}, {port})"
    page = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        spec = RunSpec(uri, "page", "n2n")
        run_id = get_or_create_run(spec)
        log = MlflowLogger(spec, tmp_path / "journal", system_metrics=False)
        log.log_image("val", np.full((4, 6, 3), 200, np.uint8), 5)
        assert log.close()
        assert f"http://127.0.0.1:{port}/#/experiments" in page.stdout.readline()
        address = f"http://127.0.0.1:{port}"
        assert "<html" in requests.get(address, timeout=30).text
        image = next(f for f in tracking.client(address).list_artifacts(run_id, "images") if f.path.endswith(".png"))
        query = {"path": image.path, "run_uuid": run_id}
        assert requests.get(f"{address}/get-artifact", query, timeout=30).content.startswith(b"\x89PNG")
        check_registry_over_http(uri, address, tmp_path)
    finally:
        children = psutil.Process(page.pid).children(recursive=True)
        page.send_signal(signal.SIGINT)
        code = page.wait(60)
    assert code == 0
    assert len(children) >= 2
    assert not any(child.is_running() for child in children)
    check_port("127.0.0.1", port)


def check_registry_over_http(uri: str, address: str, folder: Path) -> None:
    """Log, register, promote and fetch a model through the server; the database holds the same."""
    run_id, model = log_a_model(address, folder, new_noise())
    with pytest.raises(UserError, match="was created through a server"):
        get_or_create_run(RunSpec(uri, "helpers over http", "any"))
    row = registry.register(address, model, scores(model, 30.0), run_id)
    assert registry.register(address, model, scores(model, 30.0), run_id) == row
    assert promotion.promote(address, row["name"], by="ada")["changed"] is True
    assert promotion.promote(uri, row["name"])["changed"] is False
    assert registry.show(address, row["name"]) == registry.show(uri, row["name"])
    cache = folder / "cache"
    for _ in range(2):
        fetched = registry.model_folder(address, f"models:/{row['name']}@champion", cache)
        assert cache in fetched.parents
        assert (fetched / "net.safetensors").read_bytes() == (model / "net.safetensors").read_bytes()
        os.truncate(fetched / "net.safetensors", 10)  # a damaged copy is fetched again
