"""Put a checkpoint on S3 and be killed after every number of changes there (run by test_checkpoints.py).

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
from pipelines.storage.checkpoints import S3Store, open_store
from pipelines.storage.remote import bucket_at
from pipelines.storage.s3 import S3Remote

WHOLE = 3  # the exit status of a process that has put all of it there


class Dying(S3Remote):
    """A remote whose user is killed after ``left`` changes."""

    left = 0

    def send(self, source, path):
        self._count_change()
        super().send(source, path)

    def delete(self, paths):
        for path in paths:
            self._count_change()
            super().delete([path])

    def _count_change(self):
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def put(storage, run, folder, left):
    """Put step 2 there in a process of its own; say whether that was killed."""
    pid = os.fork()
    if not pid:
        bucket = bucket_at(f"{storage}/{run}/checkpoints")
        dying = Dying(bucket.address, bucket.bucket, bucket.prefix)
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
