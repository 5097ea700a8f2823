"""Who drives a sweep: one process at a time, on whichever machine, as it notes in the study while it lives."""

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from denoise.errors import UserError
from pipelines.tracking.owner import has_died, this_host, this_process

if TYPE_CHECKING:
    import optuna

DRIVER, SEEN = "denoise.driver", "denoise.seen"  # attributes of the study; SEEN in seconds since the epoch
RENEW_SECONDS = 15.0
RIVAL_SECONDS = 0.5  # within which one who found the study free at the same moment has noted so
SILENT_SECONDS = 60.0  # after which a driver on another machine is taken for dead


class Lease:
    """This process's right to go on with a study."""

    def __init__(self, study: "optuna.Study") -> None:
        self.study = study
        self._released = threading.Event()

    def take(self) -> None:
        """Note that this process drives the study.

        Raises:
            UserError: another process does.
        """
        driver = self.study.user_attrs.get(DRIVER, "")
        if driver and driver != this_process() and not self._is_gone(driver):
            raise self._taken_by(driver)
        self._renew()
        self.study.set_user_attr(DRIVER, this_process())
        time.sleep(RIVAL_SECONDS)  # Optuna cannot compare and set: of two at the same moment, the later one stays
        if (driver := self.study.user_attrs.get(DRIVER, "")) != this_process():
            raise self._taken_by(driver)

    def keep(self) -> None:
        """Go on noting it until it is released, for other machines to see."""
        threading.Thread(target=self._keep, daemon=True).start()

    def release(self) -> None:
        """Let another process go on."""
        self._released.set()
        self.study.set_user_attr(DRIVER, "")

    def _taken_by(self, driver: str) -> UserError:
        return UserError(
            f"sweep {self.study.study_name} is being run by another process ({driver}); wait for it, or stop it "
            f"(on another machine: {SILENT_SECONDS:.0f} s before this can go on)."
        )

    def _is_gone(self, driver: str) -> bool:
        if driver.startswith(f"{this_host()} "):
            return has_died(driver)
        return abs(time.time() - float(self.study.user_attrs.get(SEEN, 0))) > SILENT_SECONDS

    def _renew(self) -> None:
        self.study.set_user_attr(SEEN, time.time())

    def _keep(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            with suppress(Exception):  # a storage that does not answer now: the sweep itself will say so
                self._renew()
