"""The client's address, seen through proxies that are trusted by count.

With N trusted proxies in front (`PYLON_TRUST_PROXY_HOPS`) each of them has appended one entry
to X-Forwarded-For, so the N-th from the right was written by the outermost of them and is the
client. Everything to its left came from the client itself and proves nothing.

Used for limits and notes by address, by the API and the socket workers.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address


def client_address(peer: str, x_forwarded_for: str | None, hops: int) -> str:
    """The address of the client, in its normal spelling.

    Args:
        peer: address that the connection comes from.
        x_forwarded_for: the header, all its lines joined by commas; or None.
        hops: number of trusted proxies; with 0 the header is not looked at.

    Where the header is missing, not an address, or shorter than `hops`, it is the peer's: a
    request that has passed fewer proxies than there are came around them, and its client may have
    written every entry.
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
    """The network that a client is counted by: its IPv4 address, or the /64 of an IPv6 address.

    A subscriber has at least a /64 of IPv6 (RFC 6177), so single addresses of one count nothing.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return address


def is_loopback(address: str) -> bool:
    """Whether the address is this machine's own."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=4_096)
def _normal(text: str) -> str | None:
    """One spelling for each address: mapped IPv4 unwrapped, ports and brackets taken off."""
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
