"""Whether a Ray cluster is open to strangers, found out by knocking as one.

Ray runs whatever it is sent. A driver's own token says nothing: a cluster that asks for none takes it all the same.
"""

import ipaddress
import os
import socket
from urllib.parse import urlsplit

from denoise.errors import UserError

SECONDS = 10.0  # that an answer is waited for
CLOSE_IT = (
    "start it anew with RAY_AUTH_MODE=token on every host and here, and the token that `ray get-auth-token --generate` "
    "makes in ~/.ray/auth_token"
)
SHOW_IT = "set RAY_AUTH_MODE=token and put its token in ~/.ray/auth_token, or name the file in RAY_AUTH_TOKEN_PATH"


def accepts_unauthenticated(address: str) -> bool:
    """Say whether a cluster answers somebody who shows no token.

    Args:
        address: of its control service (GCS), HOST:PORT.

    Raises:
        UserError: it cannot be asked.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return False  # Ray's TLS is mutual: who has no certificate does not come as far as the token
    answer = _probe(address)
    if answer not in ("OK", "UNAUTHENTICATED"):
        raise UserError(
            f"the Ray cluster at {address} cannot be asked whether it wants a token ({answer}); give ray.address as "
            "HOST:PORT of its head, as this machine reaches it."
        )
    return answer == "OK"


def wants_a_token(address: str) -> bool:
    """Say whether a cluster that could not be joined is there, and turns away who shows no token."""
    return ":" in address and "//" not in address and _probe(address, seconds=2) == "UNAUTHENTICATED"


def refuse_open(address: str) -> None:
    """Refuse a cluster that anybody who reaches it can run code on.

    Raises:
        UserError: its control service is not on loopback, and answers without a token.
    """
    if not on_loopback(address) and accepts_unauthenticated(address):
        raise UserError(f"the Ray cluster at {address} lets in whoever reaches it, without a token; {CLOSE_IT}.")


def refuse_open_dashboard(url: str) -> None:
    """Refuse a dashboard that takes jobs from anybody who reaches it.

    Raises:
        UserError: it cannot be reached, or is not on loopback and answers without a token.
    """
    import requests

    try:
        answer = requests.get(f"{url}/api/version", timeout=SECONDS)
    except requests.RequestException as error:
        raise UserError(
            f"Ray's dashboard at {url} cannot be reached ({type(error).__name__}); check --address, or forward the "
            "head's port to this machine, for example with `ray dashboard ray_cluster.yaml`."
        ) from None
    # On loopback it may be the end of a tunnel: the job itself looks at its cluster once more.
    if answer.ok and not on_loopback(urlsplit(url).netloc.rpartition("@")[2]):
        raise UserError(f"Ray's dashboard at {url} takes jobs from whoever reaches it, without a token; {CLOSE_IT}.")


def on_loopback(address: str) -> bool:
    """Say whether HOST:PORT is reached from this machine alone.

    Ray itself makes a head's address of 127.0.0.1 the machine's own in its network, and listens on all of them.
    """
    host = address.rpartition(":")[0] if address.rpartition(":")[2].isdigit() else address
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        return False
    return all(ipaddress.ip_address(one.partition("%")[0]).is_loopback for one in found)


def _probe(address: str, seconds: float = SECONDS) -> str:
    """Return the name of gRPC's status for the question whether the cluster is alive, asked without a token."""
    import grpc
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    # Ray connects without a proxy, whatever the environment says of those; so do we.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=seconds)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"
