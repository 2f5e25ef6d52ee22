"""Request rates: counts every request for its address and its user (spec/identity.md §4).

Requests of administrators, preflights and probes do not count. An IPv6 client counts for its /64
and for its /48. The user is counted once the caller is known, so a request that asks for no caller
counts for its address only. The rules of the app that name a path are counted here too.

Invariants: a refused request has no effect. A response tells about the rate of which the smallest
part is left, where that is small (`PYLON_RATE_LIMIT_HEADERS`). Bound: the keys of `_REMEMBERED`
addresses. PERF: 3.5 µs of a request for each rate beside other work; a new key costs 0.9 µs of it.
Log: `rates.proxy_not_trusted`. Called by the middleware and by `callers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import falcon

from pylon.app import App
from pylon.app_rates import AppRates
from pylon.auth.forwarded import client_address, is_private
from pylon.auth.sessions import is_admin_token
from pylon.auth.tokens import bearer_token
from pylon.auth_context import AuthContext, Caller
from pylon.limiter import RateLimiter, rate_limited
from pylon.log import get_logger
from pylon.rates import (
    Rate,
    address_subject,
    of_addresses,
    of_sites,
    of_users,
    site_subject,
    user_subject,
)

_log = get_logger("rates")
_PROBES: Final = frozenset({"/health", "/livez", "/readyz", "/metrics"})
_REMEMBERED: Final = 4_096
# The part of a rate that may be left when a response tells about it, by PYLON_RATE_LIMIT_HEADERS.
_TOLD_BELOW: Final = {"always": 2.0, "low": 0.5, "never": -1.0}

_PROXY_HINT: Final = (
    "Requests come through a proxy, so all clients count as one address: set "
    "PYLON_TRUST_PROXY_HOPS to the number of proxies"
)


class RequestRates:
    """The rates of one process."""

    __slots__ = (
        "_app", "_by_app", "_has_rates", "_hops", "_keys_by_address", "_limiter", "_of_addresses",
        "_of_sites", "_of_users", "_told_below", "_warned",
    )

    def __init__(self, app: App, limiter: RateLimiter, by_app: AppRates) -> None:
        config = app.config
        self._app = app
        self._by_app = by_app
        self._limiter = limiter
        self._hops = config.trust_proxy_hops
        self._of_addresses = of_addresses(config)
        self._of_sites = of_sites(config)
        self._of_users = of_users(config)
        self._has_rates = self._of_addresses.limit > 0 or by_app.has_routes
        self._told_below = _TOLD_BELOW[config.rate_limit_headers]
        self._keys_by_address: dict[str, tuple[int, int | None]] = {}
        self._warned = False

    def admit(self, req: falcon.Request, auth: Callable[[], AuthContext]) -> None:
        """Count a request for its address, and by the app's rules for its path.

        Args:
            auth: finds the caller; called where a rule counts by user or tenant.

        Raises:
            RateLimited: a rate is spent.
            StoreUnavailable: of `auth`.
        """
        env = req.env
        if not self._has_rates or req.path in _PROBES:
            return
        token = bearer_token(env.get("HTTP_AUTHORIZATION"))
        if token and is_admin_token(token, self._app.config):
            return
        peer, forwarded = env.get("REMOTE_ADDR", ""), env.get("HTTP_X_FORWARDED_FOR")
        if (
            forwarded is not None and not self._hops and not self._warned
            and not self._app.config.dev_mode and is_private(peer)
        ):
            self._warned = True
            _log.warning("rates.proxy_not_trusted", peer=peer, hint=_PROXY_HINT)
        address = client_address(peer, forwarded, self._hops)
        if self._of_addresses.limit:
            keys = self._keys_by_address.get(address) or self._keys_of(address)
            self._spend(env, self._of_addresses, keys[0])
            if keys[1] is not None:
                self._spend(env, self._of_sites, keys[1])
        if self._by_app.has_routes:
            takes = self._by_app.of_path(req.path, auth, lambda: address)
            for take, wait_s in zip(takes, self._limiter.require_all(takes), strict=True):
                self._note_left(env, take.rate, wait_s)

    def admit_caller(self, env: dict[str, Any], caller: Caller) -> None:
        """Count a request for its user.

        Raises:
            RateLimited: the rate is spent.
        """
        auth = caller.auth
        if auth.is_admin or auth.user_id is None or not self._of_users.limit:
            return
        key = self._limiter.key(self._of_users, user_subject(auth.user_id))
        self._spend(env, self._of_users, key)

    def _spend(self, env: dict[str, Any], rate: Rate, key: int) -> None:
        wait_s = self._limiter.spend(rate, key)
        if wait_s > 0:
            raise rate_limited(rate, wait_s)
        self._note_left(env, rate, wait_s)

    def _note_left(self, env: dict[str, Any], rate: Rate, wait_s: float) -> None:
        """Note the rate for the response, if its part that is left is the smallest."""
        left = -wait_s / rate.tolerance_s
        noted = env.get("pylon.rate")
        if left < self._told_below and (noted is None or left < noted[1]):
            env["pylon.rate"] = rate, left

    def _keys_of(self, address: str) -> tuple[int, int | None]:
        key = self._limiter.key(self._of_addresses, address_subject(address))
        site = site_subject(address)
        site_key = None if site is None else self._limiter.key(self._of_sites, site)
        if len(self._keys_by_address) >= _REMEMBERED:
            self._keys_by_address.clear()
        self._keys_by_address[address] = key, site_key
        return key, site_key
