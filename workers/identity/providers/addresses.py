"""Network addresses that a provider may have: public ones, and in dev mode any.

The URL of a provider comes from an operator or from the provider itself (discovery). A wrong or
hostile one must not reach the services of the server's own network (SSRF). Called by
`workers.identity.providers.fetch`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Final

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64: Final = (
    ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"),
)
_COMPATIBLE: Final = ipaddress.IPv6Network("::/96")  # IPv4 in the last four bytes, deprecated
_SITE_LOCAL: Final = ipaddress.IPv6Network("fec0::/10")


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet, in itself and in what it embeds.

    Loopback, private, link-local, shared, multicast, reserved and documentation addresses are not,
    nor are IPv6 addresses that lead to such an IPv4 address (mapped, 6to4, Teredo, NAT64).

    Args:
        text: an address as `socket.getaddrinfo` returns it, also with a scope (`fe80::1%eth0`).
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return all(_is_global(each) for each in (address, *_embedded(address)))


def _is_global(address: _Address) -> bool:
    return (
        address.is_global and not address.is_multicast and not address.is_reserved
        and not address.is_unspecified
        and not (isinstance(address, ipaddress.IPv6Address) and address in _SITE_LOCAL)
    )


def _embedded(address: _Address) -> Iterator[ipaddress.IPv4Address]:
    """Yield the IPv4 addresses that packets to an IPv6 address may end at."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in _COMPATIBLE or any(address in network for network in _NAT64):
        yield ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
