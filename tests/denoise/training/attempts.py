"""Training runs in processes of their own, one for each rank, that may be killed; forked from a server with torch."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from denoise import distributed
from denoise.config import load_config
from denoise.data.dataset import ShardedDataset
from denoise.data.shards import Shards
from denoise.errors import UserError
from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
from denoise.training.fault_injection import FaultInjector, parse_fault
from denoise.training.loop import train

SMALL = ["net=cnn5", "train.crop=16", "train.log_every=1", "train.eval_every=1000", "train.precision=fp32"]
SECONDS = 200  # time limit of an attempt
GRACE = 15  # seconds for the other ranks to notice that one has died


def attempt(
    shards: Path, folder: Path, world: int, *overrides: str, inject: Sequence[str] = (), grace: float = GRACE
) -> list[int]:
    """Train in ``world`` processes, resuming from ``folder``; return their exit codes, negative after a signal.

    ``grace`` is how many seconds the other ranks have to end by themselves after one has; then they are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["denoise.training.loop", "torch._dynamo"])  # what takes seconds
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    settings = (shards, folder, [*SMALL, *overrides], list(inject))
    ranks = [context.Process(target=_rank, args=(rank, world, port, *settings)) for rank in range(world)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + SECONDS
    while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
        if any(process.exitcode for process in ranks):
            deadline = min(deadline, time.monotonic() + grace)
        time.sleep(0.05)
    for process in ranks:
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def _rank(rank, world, port, shards, folder, overrides, inject):
    import torch

    torch.set_num_threads(1)
    sys.stderr = (folder / f"stderr-{rank}.txt").open("a")
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        os.environ["MASTER_PORT"] = str(port)
        distributed.start_from_environment(load_config(None, overrides).ray.timeout)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    faults = FaultInjector([parse_fault(text) for text in inject], rank)

    def append(name, text):
        if rank == 0:
            with (folder / name).open("a") as file:
                file.write(text + "\n")

    images = ShardedDataset([Shards.open(shards)])
    try:
        steps_done = train(
            load_config(None, overrides),
            train_set=images,
            val_set=images,
            folder=folder,
            report=lambda metrics: append("rows.jsonl", json.dumps(metrics)),
            checkpoints=CheckpointManager(
                FolderStore(folder / "checkpoints"),
                keep=2,
                on_message=lambda message: append("messages.txt", message),
                faults=faults,
            ),
            stop_requested=stop.is_set,
            faults=faults,
        )
        append("steps_done.txt", str(steps_done))
    except UserError as error:
        append("messages.txt", str(error))
        sys.exit(1)
    finally:
        distributed.stop()


def newest(folder: Path) -> Path:
    """Return the newest checkpoint of a run."""
    return max((folder / "checkpoints").glob("step-*"))


def state(folder: Path) -> dict[str, bytes]:
    """Return all files of the newest checkpoint of a run."""
    return {path.name: path.read_bytes() for path in newest(folder).iterdir()}


def digest(folder: Path) -> str:
    """Return the digest of the samples that a run has read."""
    return json.loads((newest(folder) / "state.json").read_text())["samples"]


def losses(folder: Path) -> list[float]:
    """Return the losses of a run, row by row."""
    return [json.loads(line)["loss"] for line in (newest(folder) / "metrics.jsonl").read_text().splitlines()]


def messages(folder: Path) -> list[str]:
    """Return the messages of a run, errors included."""
    path = folder / "messages.txt"
    return path.read_text().splitlines() if path.exists() else []
