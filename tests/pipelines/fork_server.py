"""``denoise`` as a fork of one process that has imported everything: a real process which starts at once.

``ForkServer`` puts a small program called ``denoise`` into a folder. It hands its arguments, working directory,
environment and standard streams to the server, passes signals on, and ends as the forked process does: with its exit
code or by its signal. Where the start itself is the subject of a test, it starts a process of its own instead.
"""

import atexit
import gc
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from pipelines.tracking.client import ENVIRONMENT

ROOT = Path(__file__).parents[2]
MARK = "DENOISE_FORK_SERVER"  # in the environment of the server, and thus of its forks: the pid of their pytest
HEAVY = [  # what takes long to import
    "boto3",
    "matplotlib.pyplot",
    "mlflow.pyfunc",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "optuna",
    "pandas",
    "pydantic",
    "torch._dynamo",
    "webdataset",
    "denoise.training.loop",
    "pipelines.cli.app",
]
CLIENT = Path(__file__).with_name("fork_client.py")


class ForkServer:
    """The server, and the ``denoise`` that asks it for a process."""

    def __enter__(self) -> "ForkServer":
        self.folder = Path(tempfile.mkdtemp(prefix="denoise-fork-"))  # a socket's path may have 107 characters
        address = self.folder / "socket"
        environment = {**ENVIRONMENT, **os.environ, MARK: str(os.getpid()), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTEST_CURRENT_TEST", None)  # it belongs to no test
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen(16)
            self.process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno())],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,  # closed when this process is gone, however that ended
                pass_fds=[listener.fileno()],
            )
        client = self.folder / "bin" / "denoise"
        client.parent.mkdir()
        client.write_text(f"#!{sys.executable} -IS\nADDRESS = {str(address)!r}\n{CLIENT.read_text(encoding='utf-8')}")
        client.chmod(0o755)
        self.command = [str(client)]
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)


def serve(listener: socket.socket) -> None:
    """Fork a process for every connection until standard input closes; return in the forks."""
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(0, selectors.EVENT_READ)
    processes: dict[socket.socket, int] = {}  # by the connection to who has asked for it
    while True:
        for key, _ in waiting.select():
            if key.fileobj == 0:
                for pid in processes.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            elif key.fileobj is listener:
                connection, _ = listener.accept()
                request, streams = receive(connection)
                pid = os.fork()
                if pid == 0:
                    for file in (waiting, listener, connection, *processes):
                        file.close()
                    become(request, streams)
                    return
                for stream in streams:
                    os.close(stream)
                processes[connection] = pid
                waiting.register(connection, selectors.EVENT_READ)
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, connection)
            elif key.fileobj in processes:  # a signal to pass on, or none: who waits is gone
                number = key.fileobj.recv(1)
                os.kill(processes[key.fileobj], number[0] if number else signal.SIGKILL)
                if not number:
                    waiting.unregister(key.fileobj)
            elif key.data in processes:  # the process has ended
                _, status = os.waitpid(processes.pop(key.data), 0)
                with suppress(OSError):
                    key.data.sendall(str(os.waitstatus_to_exitcode(status)).encode())
                with suppress(KeyError):
                    waiting.unregister(key.data)
                key.data.close()
                waiting.unregister(key.fileobj)
                os.close(key.fileobj)


def receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """Return a request and the standard streams that came with it."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as file:
        return json.loads(file.read(int.from_bytes(size, "big"))), list(streams)


def become(request: dict, streams: list[int]) -> None:
    """Make this process what a fresh one of that request would be."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["denoise", *request["arguments"]]
    sys.path[0] = request["folder"]
    sys.modules["__main__"].__package__ = ""  # else click takes it for ``python -m``
    signal.signal(signal.SIGINT, signal.SIG_IGN if request["deaf"] else signal.default_int_handler)


def main() -> None:
    """Import what takes long, serve, and be ``denoise`` in the forks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at a terminal is for pytest
    for name in HEAVY:
        import_module(name)
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
    from pipelines.cli.app import main as denoise

    code: object = None
    try:
        denoise()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    # The end of an interpreter without taking apart the modules of the server, which takes longer than many a command.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


if __name__ == "__main__":
    main()
