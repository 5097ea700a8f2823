# What fork_server.py installs as ``denoise``, below a line with the server's ADDRESS: it must start at once.
import json
import os
import signal
import socket
import sys

connection = socket.socket(socket.AF_UNIX)
connection.connect(ADDRESS)  # noqa: F821
request = {
    "arguments": sys.argv[1:],
    "folder": os.getcwd(),  # noqa: PTH109
    "environment": dict(os.environ),
    "deaf": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
}
body = json.dumps(request).encode()
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    if signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, lambda number, frame: connection.send(bytes([number])))
socket.send_fds(connection, [len(body).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(body)
answer = connection.recv(16)
code = int(answer) if answer else 70  # the server is gone
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
