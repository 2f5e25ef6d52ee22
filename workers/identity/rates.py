"""Rates of credentials and mails: how often somebody may try, kept in the store.

They are exact over all nodes and outlive restarts. A unit is spent by one write: as the first step
of the transaction of a flow, or alone before an expensive check. A subject is what was typed, such
as an e-mail key, whether an account has it or not; so a refusal reveals no account.

Invariants: a bucket's key is a MAC, so the table names nobody. With PYLON_AUTH_RATES=false there
are no rates (development). PYLON_AUTH_RATE_LIMITS sets other limits, by the names of the rates.
Called by the flows, and by nobody else.
"""

from __future__ import annotations

from typing import Final

from pylon.auth.transactions import Step
from pylon.clock import NS_PER_S
from pylon.config import Config
from pylon.rates import Rate, address_subject
from pylon.storage.auth_ops import Condition, RateTake, SetRecords, TakeRates
from workers.identity.identity import Identity

_MINUTE_S: Final = 60.0
_HOUR_S: Final = 3_600.0

LOGIN_ACCOUNT_IP: Final = Rate("login_account_ip", 10, _HOUR_S)
LOGIN_DEVICE: Final = Rate("login_device", 30, _HOUR_S)  # a known one, in place of the account's
SEND_IP: Final = Rate("send_ip", 3, _MINUTE_S)
SEND_ADDRESS: Final = Rate("send_address", 10, _HOUR_S)
SEND_PAUSE: Final = Rate("send_pause", 1, _MINUTE_S)  # between two mails to one address
VERIFY_IP: Final = Rate("verify_ip", 30, _MINUTE_S)
VERIFY_ACCOUNT: Final = Rate("verify_account", 100, _HOUR_S)
REGISTER_IP: Final = Rate("register_ip", 10, _HOUR_S)
START_IP: Final = Rate("start_ip", 30, _MINUTE_S)  # nonces, challenges, starts of OAuth
REAUTH_USER: Final = Rate("reauth_user", 10, _HOUR_S)
EMAIL_CHANGE_USER: Final = Rate("email_change_user", 5, _HOUR_S)
INVITE_USER: Final = Rate("invite_user", 50, _HOUR_S)


def login_ip(config: Config) -> Rate:
    """Return the rate of sign-ins by password of an address (`PYLON_AUTH_LOGIN_IP_PER_MIN`)."""
    return Rate("login_ip", config.auth_login_ip_per_min, _MINUTE_S)


def login_account(config: Config) -> Rate:
    """Return the rate of wrong passwords of an account, from devices that are not known
    (`PYLON_AUTH_LOGIN_ACCOUNT_PER_HOUR`)."""
    return Rate("login_account", config.auth_login_account_per_hour, _HOUR_S)

Unit = tuple[Rate, str]  # a rate and its subject


def take_rates(identity: Identity, *units: Unit) -> list[Step]:
    """Return the step that spends one unit of each rate, or none if one is used up.

    The step is refused with `RateLimited`; the transaction then does nothing.

    Args:
        units: a rate and its subject. The subject of a rate of addresses is the client's address.
    """
    if not identity.app.config.auth_rates:
        return []
    return [TakeRates(
        [_take(identity, rate, subject) for rate, subject in units],
        identity.app.clock.wall_ns(),
    )]


def return_units(identity: Identity, *units: Unit) -> list[Step]:
    """Return the steps that give units back which `take_rates` has spent, as for an attempt that
    was right."""
    if not identity.app.config.auth_rates:
        return []
    takes = [_take(identity, rate, subject) for rate, subject in units]
    return [
        SetRecords(
            "limits", [Condition("key", "=", take.key)], {}, add={"tat": -take.interval_ns}
        )
        for take in takes
    ]


def _take(identity: Identity, rate: Rate, subject: str) -> RateTake:
    limit = identity.app.config.auth_rate_limits.get(rate.name)
    if limit is not None:
        rate = Rate(rate.name, limit, rate.window_s)
    if rate.name.endswith("_ip") and " " not in subject:
        subject = address_subject(subject)
    return RateTake(
        identity.keys.mac("rate", rate.name, subject)[:32],
        round(rate.interval_s * NS_PER_S), round(rate.tolerance_s * NS_PER_S), rate.name,
    )
