"""The client's address behind a known number of trusted proxies.

Each of N trusted proxies (`PYLON_TRUST_PROXY_HOPS`) has appended one entry to X-Forwarded-For. The
outermost proxy wrote the N-th entry from the right, which is the client. The client itself may have
written all entries to the left of it.

Called by the API and the socket workers, for limits and hints by address.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address


def client_address(peer: str, x_forwarded_for: str | None, hops: int) -> str:
    """Return the client's address in its normal spelling.

    Args:
        peer: the address of the connection.
        x_forwarded_for: the header, its lines joined by commas; or None.
        hops: the number of trusted proxies; 0 ignores the header.

    Returns:
        The peer's address if the header is missing, shorter than `hops`, or holds no address there.
        Such a request has bypassed a proxy, and its client may have written every entry.
    """
    if hops > 0 and x_forwarded_for:
        entries = x_forwarded_for.split(",")
        if len(entries) >= hops:
            claimed = _normal(entries[-hops].strip())
            if claimed is not None:
                return claimed
    return _normal(peer) or peer


@lru_cache(maxsize=4_096)
def network_of(address: str) -> str:
    """Return the network that limits count: an IPv4 address, or the /64 of an IPv6 address.

    Every IPv6 subscriber has at least a /64 (RFC 6177), so a single IPv6 address limits nobody.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return address


def is_loopback(address: str) -> bool:
    """Whether the address is a loopback address."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=4_096)
def is_private(address: str) -> bool:
    """Whether the address is one of a private network or of this machine."""
    try:
        return ip_address(address).is_private
    except ValueError:
        return False


@lru_cache(maxsize=4_096)
def _normal(text: str) -> str | None:
    """Return one spelling for each address: no port, no brackets, mapped IPv4 as IPv4."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
