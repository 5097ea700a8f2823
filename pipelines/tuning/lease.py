"""The lease of a sweep: one process at a time runs it, on whichever machine, and renews its lease in the study."""

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from denoise.errors import UserError
from pipelines.console import say
from pipelines.tracking.owner import has_died, this_host, this_process

if TYPE_CHECKING:
    import optuna

# Attributes of the study: the process that holds the lease, and when it renewed it, in seconds since the epoch.
HOLDER, RENEWED = "denoise.driver", "denoise.seen"
RENEW_SECONDS = 15.0
WATCH_SECONDS = RENEW_SECONDS + 5  # within which a holder on another machine that is alive has renewed it
RACE_SECONDS = 0.5  # within which a process that found the study free at the same moment has written its name, too
EXPIRY_SECONDS = 60.0  # without renewal, after which a holder on another machine counts as dead


class Lease:
    """This process's right to run a study's trials."""

    def __init__(self, study: "optuna.Study") -> None:
        self.study = study
        self._released = threading.Event()

    def acquire(self) -> None:
        """Write into the study that this process runs it.

        Raises:
            UserError: another process does.
        """
        holder = self.study.user_attrs.get(HOLDER, "")
        if holder and holder != this_process() and not self._has_expired(holder):
            raise self._held_error(holder)
        self._renew()
        self.study.set_user_attr(HOLDER, this_process())
        time.sleep(RACE_SECONDS)  # Optuna cannot compare and set: of two at the same moment, the later one stays
        if (holder := self.study.user_attrs.get(HOLDER, "")) != this_process():
            raise self._held_error(holder)

    def keep_alive(self) -> None:
        """Renew the lease in the background until it is released, for other machines to see."""
        threading.Thread(target=self._keep_renewing, daemon=True).start()

    def release(self) -> None:
        """Let another process run the study."""
        self._released.set()
        self.study.set_user_attr(HOLDER, "")

    def _has_expired(self, holder: str) -> bool:
        if holder.startswith(f"{this_host()} "):
            return has_died(holder)
        renewed = self.study.user_attrs.get(RENEWED, 0)
        if abs(time.time() - float(renewed)) <= EXPIRY_SECONDS:
            return False
        # It may only look old: one of the two clocks is wrong, or was set. Whoever is alive renews it meanwhile.
        say(f"{self.study.study_name}: looking for {WATCH_SECONDS:.0f} s whether {holder} still runs it")
        time.sleep(WATCH_SECONDS)
        return bool(self.study.user_attrs.get(RENEWED, 0) == renewed)

    def _held_error(self, holder: str) -> UserError:
        return UserError(
            f"sweep {self.study.study_name} is being run by another process ({holder}); wait for it, or stop it "
            f"(on another machine: {EXPIRY_SECONDS:.0f} s before this can go on)."
        )

    def _renew(self) -> None:
        self.study.set_user_attr(RENEWED, time.time())

    def _keep_renewing(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            with suppress(Exception):  # a storage that does not answer now: the sweep itself will say so
                self._renew()
