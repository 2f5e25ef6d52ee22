"""Addresses of cluster ports: from PYLON_CLUSTER_URL to the endpoint of one worker.

Worker n of a node has the port of the URL plus n - 1. Called by `pylon.setting_values`' checks, by
`links`, and by the shards worker.
"""

from __future__ import annotations

from urllib.parse import urlsplit


def port_of(url: str) -> int:
    """Return the port of a valid URL ``tcp://host:port``."""
    return int(urlsplit(url).port or 0)


def worker_endpoint(url: str, worker: str) -> str:
    """Return where the cluster port of a node's worker is reached.

    Raises:
        ValueError: the URL or the worker is not valid.
    """
    parts = urlsplit(url)
    host, port = parts.hostname, port_of(url) + int(worker) - 1
    if parts.scheme != "tcp" or not host or not 0 < port < 65_536:
        raise ValueError(f"{url!r} is no address of a cluster port")
    return f"tcp://{_bracketed(host)}:{port}"


def bind_endpoint(bind: str, url: str, worker: str) -> str:
    """Return where the worker of this node listens: `bind` is its own address (PYLON_BIND)."""
    return f"tcp://{_bracketed(bind)}:{port_of(url) + int(worker) - 1}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
