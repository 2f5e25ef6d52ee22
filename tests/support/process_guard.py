"""Keep the mark `processes` true: only a test with the fixture `processes` may start Python.

`mark_items` gives the mark `processes` to each test whose fixtures include `processes`, directly
or through another fixture. An audit hook refuses `subprocess`, `os.fork` and `os.posix_spawn` of
a Python program in every other test, so that the mark cannot be forgotten.

Invariant: a test without the mark starts no Python process, neither by itself nor through Pylon.
Programs that are not Python (`true`, `tar`, `ldconfig`) are free: they cost milliseconds.
`tests/conftest.py` calls `install` once in each pytest process, and `watch` around each test.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

FIXTURE: Final = "processes"
_PYLON_PROGRAMS: Final = frozenset({"pylonctl", "gunicorn"})
_SPAWN_EVENTS: Final = frozenset({"subprocess.Popen", "os.posix_spawn", "os.exec"})
_FORK_EVENTS: Final = frozenset({"os.fork", "os.forkpty"})

_watched: list[pytest.Item] = []  # the test that runs, if any


def is_marked(item: pytest.Item) -> bool:
    """Return whether `item` may start Python processes."""
    return FIXTURE in getattr(item, "fixturenames", ())


def mark_items(items: Sequence[pytest.Item]) -> None:
    """Give the mark `processes` to the tests that may start processes.

    Raises: pytest.UsageError when a test has the mark by hand, and not the fixture.
    """
    for item in items:
        if is_marked(item):
            item.add_marker(pytest.mark.processes)
        elif item.get_closest_marker(FIXTURE) is not None:
            raise pytest.UsageError(
                f"{item.nodeid} sets the mark {FIXTURE!r} by hand; take the fixture {FIXTURE!r}."
            )


@contextmanager
def watch(item: pytest.Item) -> Iterator[None]:
    """Refuse Python processes within the block unless `item` may start them."""
    _watched.append(item)
    try:
        yield
    finally:
        _watched.pop()


def install() -> None:
    """Install the audit hook, which stays until this process ends."""
    # PERF: a test sees some 10,000 audit events; the look-up of a name in a set costs 0.1 us each.
    watched_events = _SPAWN_EVENTS | _FORK_EVENTS

    def refuse_processes(event: str, args: tuple[object, ...]) -> None:
        if event not in watched_events or not _watched or is_marked(_watched[-1]):
            return
        if event in _FORK_EVENTS or is_python(args):
            raise AssertionError(
                f"{_watched[-1].nodeid} starts a Python process ({event}) and lacks the fixture"
                f" {FIXTURE!r}. Take a fixture that starts the process (make_server, ...), or"
                f" write @pytest.mark.usefixtures({FIXTURE!r})."
            )

    sys.addaudithook(refuse_processes)


def is_python(spawn_args: Sequence[object]) -> bool:
    """Return whether a command starts this Python or a program of Pylon, also behind a wrapper."""
    program, command = spawn_args[0], spawn_args[1]
    words = [command] if isinstance(command, (str, bytes, os.PathLike)) else [*command]  # type: ignore[misc]
    return any(_is_python_word(os.fsdecode(word)) for word in (program, *words) if word)


def _is_python_word(word: str) -> bool:
    name = Path(word).name
    return word == sys.executable or name.startswith("python") or name in _PYLON_PROGRAMS
