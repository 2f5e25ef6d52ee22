"""The services that every flow gets, and the call that it answers.

Invariants: an `Identity` does not change once it is made; flows keep no state of their own, since a
killed process is started again. Made by `workers.identity.server`, and by tests on a real store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec

from pylon.api.services import Writer
from pylon.app import App
from pylon.auth.disposable_domains import DisposableDomains
from pylon.auth.issue import SessionIssuer
from pylon.auth.keys import Keys
from pylon.auth.password_rules import PasswordRules
from pylon.auth_context import Caller
from pylon.bus.identity import CallFacts
from pylon.bus.messages import Signal
from pylon.clock import NS_PER_S
from pylon.mail.outbox import Mails
from pylon.storage.interface import Store

if TYPE_CHECKING:  # their libraries are imported after the process is ready
    from workers.identity.hashing import HashPool
    from workers.identity.jwts import Jwts
    from workers.identity.providers.client import Provider

if TYPE_CHECKING:
    from workers.identity.captcha import CaptchaCheck

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """The services of the process."""

    app: App  # settings, manifest, codecs, clock, random
    store: Store
    writer: Writer
    hashes: HashPool
    keys: Keys
    rules: PasswordRules
    issuer: SessionIssuer
    providers: Mapping[str, Provider]  # by name
    jwts: Callable[[], Jwts]  # makes them when they are first needed
    mails: Mails
    captcha: CaptchaCheck | None  # None: no captchas
    disposable: DisposableDomains
    wake_mail: Callable[[], None]  # after the commit of a mail
    send_signal: Callable[[Signal], None]

    def now_s(self) -> int:
        """Return the Unix time in seconds."""
        return self.app.clock.wall_ns() // NS_PER_S


@dataclass(frozen=True, slots=True)
class Call:
    """One call: what its client sent, and what the HTTP worker knows."""

    body: bytes  # JSON of the struct of the route
    params: Mapping[str, str]  # of the path and the query
    facts: CallFacts

    @property
    def caller(self) -> Caller:
        """Return the caller, as the HTTP worker has found it."""
        facts = self.facts
        return Caller(facts.auth, facts.session_id, facts.family, facts.auth_time_s)

    def decode(self, kind: type[T]) -> T:
        """Return the body as the struct that the route declares."""
        return msgspec.json.decode(self.body, type=kind)
