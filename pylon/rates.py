"""Rates: how often one subject may do something in a time.

A subject is an identity (`user_subject`) or a network address (`address_subject`).
`pylon.limiter.RateLimiter` spends a rate. A fixed rate is a constant of this module; a rate that an
operator may set is a function of its setting. docs/limits.md lists every rate; a test compares the
two.

Called by the API and by the socket workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Final

from pylon.auth.forwarded import network_of
from pylon.auth_context import AuthContext
from pylon.config import Config


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` in `window_s`, and at most `burst` at once.

    `name` is the label of the metric and part of the key, so two rates must not share one.
    A `limit` of 0 allows everything.
    """

    name: str
    limit: float
    window_s: float
    burst: float | None = None

    # PERF: 0.5 µs of each take, computed once.
    interval_s: float = field(init=False, repr=False, compare=False)
    tolerance_s: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compute the time in which one unit is restored, and how far the spent units may be ahead
        of the clock, in seconds. Both are 0 of a rate that allows everything."""
        interval_s = self.window_s / self.limit if self.limit > 0 else 0.0
        object.__setattr__(self, "interval_s", interval_s)
        object.__setattr__(self, "tolerance_s", self.quota * interval_s)

    @property
    def quota(self) -> float:
        """Return the units that a subject may spend at once."""
        return self.limit if self.burst is None else self.burst

    def headers(self, left: float) -> tuple[tuple[str, str], ...]:
        """Return the headers of a response (draft-ietf-httpapi-ratelimit-headers).

        Args:
            left: the part of the quota that is left, from 0 to 1.
        """
        restored_s = math.ceil((1 - left) * self.tolerance_s)
        return (
            ("ratelimit-policy", f'"{self.name}";q={self.quota:g};w={self.window_s:g}'),
            ("ratelimit", f'"{self.name}";r={math.floor(left * self.quota)};t={restored_s}'),
        )


def address_subject(address: str) -> str:
    """Return the subject of a client address. IPv6 clients of one /64 share a subject."""
    return f"ip:{network_of(address)}"


def site_subject(address: str) -> str | None:
    """Return the subject of a site, the /48 of an IPv6 address; None for an IPv4 address.

    A site may give each of its clients a /64 (RFC 6177).
    """
    network = network_of(address)
    if not network.endswith("/64"):
        return None
    return f"site:{IPv6Address(int(IPv6Address(network[:-3])) >> 80 << 80)}/48"


def user_subject(user_id: str) -> str:
    """Return the subject of an identity."""
    return f"user:{user_id}"


def subject_of(auth: AuthContext, address: str) -> str:
    """Return the subject of a caller: its user, or the address of a guest or anonymous caller.

    Guests count by address, because any client can create guests.
    """
    if auth.user_id is None or auth.is_guest:
        return address_subject(address)
    return user_subject(auth.user_id)


def is_user_subject(subject: str) -> bool:
    """Whether a subject is an identity and not an address."""
    return subject.startswith("user:")


# One address may be an office or a mobile carrier, so most of its rates are ten times higher.
SHARDS_BY_USER: Final = Rate("shards-of-user", 60, 60.0)
SHARDS_BY_ADDRESS: Final = Rate("shards-of-address", 600, 60.0)
DOCUMENT_PUSHES_BY_USER: Final = Rate("document-pushes-of-user", 1_200, 60.0)
DOCUMENT_PUSHES_BY_ADDRESS: Final = Rate("document-pushes-of-address", 24_000, 60.0)  # of guests
DOCUMENT_OPENS: Final = Rate("document-opens", 36_000, 60.0)
MATCHES_BY_USER: Final = Rate("matches-of-user", 60, 60.0)
MATCHES_BY_ADDRESS: Final = Rate("matches-of-address", 600, 60.0)
ROOM_JOINS_BY_USER: Final = Rate("room-joins-of-user", 1_200, 60.0)
ROOM_JOINS_BY_ADDRESS: Final = Rate("room-joins-of-address", 12_000, 60.0)
ROOM_READS_BY_USER: Final = Rate("room-reads-of-user", 3_000, 60.0, burst=500)
ROOM_READS_BY_ADDRESS: Final = Rate("room-reads-of-address", 30_000, 60.0, burst=5_000)
ROOM_SUBSCRIPTIONS_BY_USER: Final = Rate("room-subscriptions-of-user", 1_200, 60.0)
ROOM_SUBSCRIPTIONS_BY_ADDRESS: Final = Rate("room-subscriptions-of-address", 12_000, 60.0)
ROOM_MESSAGES_BY_USER: Final = Rate("room-messages-of-user", 15_000, 60.0, burst=3_000)
ROOM_MESSAGES_BY_ADDRESS: Final = Rate("room-messages-of-address", 300_000, 60.0, burst=30_000)
UPLOADS: Final = Rate("uploads", 100, 60.0)  # of a user, or an address of guests

# Refusals that reveal rows which the caller may not read (`pylon.api.data.conflicts`).
HIDDEN_CONFLICTS_BY_USER: Final = Rate("hidden-conflicts-of-user", 30, 60.0)
HIDDEN_CONFLICTS_BY_ADDRESS: Final = Rate("hidden-conflicts-of-address", 300, 60.0)
UNDONE_VALUES_BY_USER: Final = Rate("undone-values-of-user", 600, 60.0, burst=2_000)
UNDONE_VALUES_BY_ADDRESS: Final = Rate("undone-values-of-address", 6_000, 60.0, burst=20_000)


def guests(config: Config) -> Rate:
    """Return the rate of new guest sessions of an address (`PYLON_GUESTS_PER_IP_PER_MIN`).

    The burst is ten minutes' worth, because all people of an office may connect at once.
    """
    per_minute = config.guests_per_ip_per_min
    return Rate("guests", per_minute, 60.0, burst=10 * per_minute)


def of_addresses(config: Config) -> Rate:
    """Return the rate of all requests of an address (`PYLON_RATE_LIMIT_MAX`)."""
    return Rate("ip", config.rate_limit_max, config.rate_limit_window)


def of_sites(config: Config) -> Rate:
    """Return the rate of all requests of an IPv6 site, which may have many addresses."""
    return Rate("site", 4 * config.rate_limit_max, config.rate_limit_window)


def of_users(config: Config) -> Rate:
    """Return the rate of all requests of a user (`PYLON_RATE_LIMIT_MAX_AUTHED`)."""
    return Rate("user", config.rate_limit_max_authed, config.rate_limit_window)
