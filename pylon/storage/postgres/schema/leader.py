"""Leader: one session at a time changes a schema.

A session lock (`pg_advisory_lock`) keeps the others out, and ends with its session. It is asked for
again and again and never waited for: a statement that waits has a snapshot, and CREATE INDEX
CONCURRENTLY waits for all snapshots. Called by `apply`, `rewrite` and `manager`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from pylon.clock import Clock, SystemClock
from pylon.errors import StartDelayed
from pylon.log import get_logger
from pylon.storage.postgres.locks import SCHEMA, lock_key
from pylon.storage.postgres.schema.results import ask, ask_one
from pylon.storage.postgres.wire import BlockingSession

LOCK_WAIT_S: Final = 60.0
_PAUSE_S: Final = 0.1
# The limits of a session while it changes the schema: the waits are bounded by `online`.
_LIMITS: Final = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
_SHOW: Final = "SELECT " + ", ".join(f"current_setting('{name}')" for name in _LIMITS)
_SET: Final = "SELECT " + ", ".join(
    f"set_config('{name}', ${place}, false)" for place, name in enumerate(_LIMITS, 1)
)

_log = get_logger("schema")


@contextmanager
def alone(
    session: BlockingSession, wait_s: float = LOCK_WAIT_S, *, waits: Clock | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Run the block as the only session that changes the schema, without the session's own limits.

    Args:
        waits: the clock of the time limit.

    Raises:
        StartDelayed: another one changes it for longer than `wait_s`.
        psycopg.Error
    """
    key = lock_key(session, SCHEMA)
    _wait(session, key, waits or SystemClock(), wait_s, pause)
    (known,) = ask(session, _SHOW)
    try:
        session.execute(_SET, ("0",) * len(_LIMITS))
        yield
    finally:
        if not session.is_broken:
            session.execute(_SET, known)
            session.execute("SELECT pg_advisory_unlock($1)", (key,))


def _wait(
    session: BlockingSession, key: int, clock: Clock, wait_s: float,
    pause: Callable[[float], None],
) -> None:
    until_s = clock.monotonic_s() + wait_s
    is_told = False
    while ask_one(session, "SELECT pg_try_advisory_lock($1)", (key,)) != "t":
        if clock.monotonic_s() >= until_s:
            raise StartDelayed(
                f"another node has changed the schema for more than {wait_s:g} s",
                hint="its log says what it does; then start this one again",
            )
        if not is_told:
            is_told = True
            _log.info("schema.waiting", wait_s=wait_s)
        pause(_PAUSE_S)
