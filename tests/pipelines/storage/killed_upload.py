"""Put a checkpoint on S3 and be killed after every number of changes there (run by test_checkpoint_s3.py).

Run with the folder of a sound checkpoint: the run ``killed-K`` holds the same one as step 1 and, being killed after K
changes, some of it as step 2; run ``again-K`` had a whole step 2 before. The last runs of each are killed after all is
done. The numbers of runs are printed.
"""

import itertools
import os
import shutil
import signal
import sys
from pathlib import Path

from denoise.training.checkpoint import checkpoint_name
from pipelines.storage.base import S3Remote, bucket_at
from pipelines.storage.checkpoints import S3Store, open_store

WHOLE = 3  # the exit status of a process that has put all of it there


class Dying(S3Remote):
    """A place whose user is killed before it changes one object too many."""

    left = 0

    def send(self, source, path):
        self._live()
        super().send(source, path)

    def delete(self, paths):
        for path in paths:
            self._live()
            super().delete([path])

    def _live(self):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def put(storage, run, folder, left):
    """Put step 2 there in a process of its own; say whether that was killed."""
    pid = os.fork()
    if not pid:
        place = bucket_at(f"{storage}/{run}/checkpoints")
        dying = Dying(place.address, place.bucket, place.prefix)
        dying.left = left
        S3Store(dying).put(checkpoint_name(2), lambda work: fill(work, folder))
        os._exit(WHOLE)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (WHOLE, -signal.SIGKILL), code
    return code != WHOLE


def fill(work, folder):
    shutil.copytree(folder, work, dirs_exist_ok=True)


if __name__ == "__main__":
    storage, folder = sys.argv[1], Path(sys.argv[2])
    for kind, steps in (("killed", [1]), ("again", [1, 2])):
        for left in itertools.count():
            store = open_store(storage, f"{kind}-{left}")
            for step in steps:
                store.put(checkpoint_name(step), lambda work: fill(work, folder))
            if not put(storage, f"{kind}-{left}", folder, left):
                break
        print(left)
