"""Cluster of the supervisor: the key pair of this node, and the check of its ports.

The shards workers bind the cluster ports themselves (`pylon.cluster`). A port that is taken is to
refuse the start, and not to end one worker after the other. So the supervisor binds the ports for a
moment before it starts workers. Called by `supervisor.main`.
"""

from __future__ import annotations

import errno
import socket

from pylon.bus.runtime import Runtime
from pylon.cluster.addresses import port_of
from pylon.cluster.keys import has_curve, make_key_pair, save_key_pair
from pylon.config import Config
from pylon.disk_errors import start_error
from pylon.errors import StartRefused


def prepare_cluster(config: Config, runtime: Runtime) -> str:
    """Make the key pair of this run for the workers; return its public half, "" without nodes.

    Raises:
        StartRefused: a port is taken, the address is not of this machine, or ZeroMQ cannot encrypt.
    """
    if config.database_url is None:
        return ""
    if not has_curve():
        if config.cluster_url is None:
            return ""
        raise StartRefused("PYLON_CLUSTER_URL is set, and this build of ZeroMQ has no CURVE: "
                           "install pyzmq from its wheel, or libzmq with libsodium")
    if config.cluster_url is not None:
        first = port_of(config.cluster_url)
        for port in range(first, first + config.workers_of("shards")):
            _try_port(config.bind, port, config.cluster_url)
    pair = make_key_pair()
    try:
        save_key_pair(runtime.cluster_key, pair)
    except OSError as ex:
        raise start_error(ex, runtime.cluster_key) from ex
    return pair.public


def _try_port(host: str, port: int, url: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
            sock.listen()
        except OSError as ex:
            reason = "it is taken" if ex.errno == errno.EADDRINUSE else ex.strerror or str(ex)
            raise StartRefused(
                f"Port {port} on {host} cannot be a cluster port: {reason}. PYLON_CLUSTER_URL is "
                f"{url}, and each shards worker needs a port from there on"
            ) from ex
