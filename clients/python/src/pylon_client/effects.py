"""Effects: what the core asks its shell to do. The core itself does no IO.

Each operation of the client is a generator, a `Steps[T]`: it yields effects, is sent their results,
and returns a T. `sync_shell` carries effects out with blocking calls, `async_shell` with await. So
each rule of the client (retries, reconnection, windows, cursors) is written once.

A failed effect is thrown into the generator as `EffectFailed`. Whether the server may have seen the
request is in `was_sent`.

Called by all modules of the core, and by both shells.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

T = TypeVar("T")

WOKEN: Final = b"\x00woken"  # the result of a wait that `Wake.set` has ended


class EffectFailed(Exception):
    """The network failed. `was_sent`: the server may have seen the request."""

    def __init__(self, message: str, *, was_sent: bool = True, is_timeout: bool = False) -> None:
        super().__init__(message)
        self.was_sent = was_sent
        self.is_timeout = is_timeout


class Wake(Protocol):
    """Ends a wait of the core, from another thread or task."""

    def set(self) -> None: ...

    def close(self) -> None: ...


class Channel(Protocol):
    """An open byte stream of a shell. The core only hands it back."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request.

    `path` begins with a slash, or is a whole URL. `is_repeatable`: a second time does no harm.
    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    is_repeatable: bool = True
    key: str | None = None  # the Idempotency-Key


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request. The names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class Send:
    """Send one request -> Answer."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    timeout_s: float


@dataclass(frozen=True, slots=True)
class StartStream:
    """Send one request and leave the answer open -> (Answer without content, Channel)."""

    request: Send


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a TCP or TLS connection -> Channel."""

    host: str
    port: int
    is_tls: bool
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Receive:
    """Read bytes -> bytes; b"" at the end; None after the timeout; WOKEN if `wake` was set."""

    channel: Channel
    timeout_s: float
    wake: Wake | None = None


@dataclass(frozen=True, slots=True)
class Transmit:
    """Write all bytes -> None."""

    channel: Channel
    data: bytes


@dataclass(frozen=True, slots=True)
class Shut:
    """Close a channel -> None. Never fails."""

    channel: Channel


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait -> None, or WOKEN if `wake` was set before."""

    seconds: float
    wake: Wake | None = None


@dataclass(frozen=True, slots=True)
class AskToken:
    """Call the application's function for a token, which may be a coroutine -> str or None."""

    function: Any


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give items to the application, in order -> None. Only in the steps of an iterator."""

    items: list[Any]


Effect: TypeAlias = (
    Send | StartStream | Connect | Receive | Transmit | Shut | Pause | AskToken | Deliver
)
Steps: TypeAlias = Generator[Effect, Any, T]


def gather(steps: Steps[Any]) -> Steps[list[Any]]:
    """Return all items that the steps of an iterator deliver, as one list."""
    items: list[Any] = []
    try:
        effect = next(steps)
        while True:
            if isinstance(effect, Deliver):
                items.extend(effect.items)
                effect = next(steps)
                continue
            try:
                result = yield effect
            except EffectFailed as failed:
                effect = steps.throw(failed)
            else:
                effect = steps.send(result)
    except StopIteration:
        return items


class Stopped(BaseException):
    """Ends steps early: the shell throws it in, and carries out what the steps do to clean up."""


@dataclass(frozen=True, slots=True)
class Raw(Generic[T]):
    """A result together with the last answer that led to it."""

    value: T
    answer: Answer


def with_answer(steps: Steps[T]) -> Steps[Raw[T]]:
    """Return the result of the steps and the last answer that they got."""
    answer = Answer(0, {}, b"")
    try:
        effect = next(steps)
        while True:
            try:
                result = yield effect
            except EffectFailed as failed:
                effect = steps.throw(failed)
            else:
                if isinstance(result, Answer):
                    answer = result
                effect = steps.send(result)
    except StopIteration as stop:
        return Raw(stop.value, answer)
