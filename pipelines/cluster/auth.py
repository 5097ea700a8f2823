"""Ray's token: only its owner can read it; and a check that a cluster requires one, by a call without it.

Ray runs any code that it is sent. That this process has a token proves nothing: an open cluster accepts it as well.
"""

import ipaddress
import os
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from denoise.errors import UserError
from pipelines.console import say

TIMEOUT_SECONDS = 10.0
CLOSE_HINT = (
    "restart it with RAY_AUTH_MODE=token on every host and here, and the token that `ray get-auth-token --generate` "
    "writes to ~/.ray/auth_token"
)
AUTH_HINT = "set RAY_AUTH_MODE=token and put its token in ~/.ray/auth_token, or name the file in RAY_AUTH_TOKEN_PATH"


def token_file() -> Path | None:
    """Return the file that Ray reads its token from; None where the token is in RAY_AUTH_TOKEN, or none is wanted."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def create_token() -> None:
    """Write a token for a cluster that starts here, where there is none, readable by this user alone.

    Ray would write one that every user of this machine can read, and run code with.
    """
    file = token_file()
    if file is None or "RAY_AUTH_TOKEN_PATH" in os.environ:  # Ray itself says what is wrong with that file
        return
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError), tempfile.NamedTemporaryFile("w", dir=file.parent) as private:  # mode 0600
            private.write(secrets.token_hex(32))
            private.flush()
            os.link(private.name, file)  # whole from the start: another process may start a cluster now
    except OSError as error:
        raise UserError(
            f"Ray's token {file} cannot be written ({error.strerror}); make its folder writable, or name the file of a "
            "token in RAY_AUTH_TOKEN_PATH."
        ) from None
    protect_token()


def protect_token() -> None:
    """Let only this user read the file of Ray's token.

    Raises:
        UserError: the file belongs to another user.
    """
    file = token_file()
    try:
        status = file.stat() if file else None
    except OSError:  # there is none, or it cannot be reached: Ray will say so
        return
    if file is None or status is None:
        return
    if status.st_uid != os.geteuid():
        if "RAY_AUTH_TOKEN_PATH" in os.environ:  # such as a secret that Kubernetes mounts
            return
        raise UserError(
            f"Ray's token {file} belongs to another user, who can run code with it; delete it, and a new one will be "
            "written, or name another file in RAY_AUTH_TOKEN_PATH."
        )
    if status.st_mode & 0o077:
        file.chmod(0o600)
        say(f"{file} could be read by other users, who can run code with Ray's token; its mode is now 0600")


def accepts_unauthenticated(address: str) -> bool:
    """Return whether a cluster answers calls without a token.

    Args:
        address: of its global control service (GCS), HOST:PORT.

    Raises:
        UserError: the cluster gives no clear answer.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return False  # Ray's TLS is mutual: without a certificate a caller does not get as far as the token
    status = _probe(address)
    if status not in ("OK", "UNAUTHENTICATED"):
        raise UserError(
            f"the Ray cluster at {address} does not say whether it requires a token ({status}); give ray.address as "
            "HOST:PORT of its head, as this machine reaches it."
        )
    return status == "OK"


def requires_token(address: str) -> bool:
    """Return whether a cluster at that address rejects calls without a token; False if nothing answers there."""
    return ":" in address and "//" not in address and _probe(address, seconds=2) == "UNAUTHENTICATED"


def refuse_open(address: str) -> None:
    """Refuse a cluster on which anyone who can reach it can run code.

    Args:
        address: of its global control service (GCS), HOST:PORT.

    Raises:
        UserError: the service is not on loopback, and answers without a token.
    """
    if not on_loopback(address) and accepts_unauthenticated(address):
        raise UserError(f"the Ray cluster at {address} accepts anyone who reaches it, without a token; {CLOSE_HINT}.")


def refuse_open_dashboard(url: str) -> None:
    """Refuse a dashboard that accepts jobs from anyone who can reach it.

    Raises:
        UserError: the dashboard cannot be reached, or is not on loopback and answers without a token.
    """
    import requests

    try:
        response = requests.get(f"{url}/api/version", timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise UserError(
            f"Ray's dashboard at {url} cannot be reached ({type(error).__name__}); check --address, or forward the "
            "head's port to this machine, for example with `ray dashboard ray_cluster.yaml`."
        ) from None
    # On loopback it may be the end of a tunnel; the job itself checks its cluster again.
    if response.ok and not on_loopback(urlsplit(url).netloc.rpartition("@")[2]):
        raise UserError(f"Ray's dashboard at {url} accepts jobs from anyone, without a token; {CLOSE_HINT}.")


def on_loopback(address: str) -> bool:
    """Return whether HOST:PORT can be reached from this machine only.

    A head that is started with 127.0.0.1 is not on loopback: Ray replaces that by the machine's address in its
    network, and listens on all addresses.
    """
    host = address.rpartition(":")[0] if address.rpartition(":")[2].isdigit() else address
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(ip.partition("%")[0]).is_loopback for ip in addresses)


def _probe(address: str, seconds: float = TIMEOUT_SECONDS) -> str:
    """Return the name of the gRPC status of a CheckAlive call without a token: OK, UNAUTHENTICATED, UNAVAILABLE, ..."""
    import grpc

    # Generated by Ray, undocumented: no public call tells whether a cluster requires a token.
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    # Ray connects without a proxy, whatever the environment says; so do we.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=seconds)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
