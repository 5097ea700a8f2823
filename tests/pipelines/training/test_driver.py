"""What the driver of a run says while it waits, without Ray."""

from denoise.config import Config, Ray
from pipelines.cluster import workers
from pipelines.training import driver
from pipelines.training.driver import CapacityNotice


def test_a_run_without_room_says_so_once_until_it_advances(monkeypatch, capfd):
    room = iter([1, 1, 2])
    monkeypatch.setattr(driver, "CAPACITY_SECONDS", 0.0)
    monkeypatch.setattr(workers, "worker_capacity", lambda config: next(room))
    notice = CapacityNotice("n2n", Config(ray=Ray(workers=2)))
    for advanced in (False, False, True, False):
        notice.check(advanced)
    assert capfd.readouterr().err.count("n2n: waits, as the cluster has room for 1 of 2 workers") == 2
