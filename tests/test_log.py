"""Log lines: their form, their level, and what they must not show."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pylon import log
from pylon.clock import ManualClock

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    read, write = os.pipe()
    yield read, write
    log.configure("json", "info", "", "")
    root.handlers[:] = handlers
    root.setLevel(level)
    os.close(read)
    os.close(write)


def text_of(read: int) -> str:
    return os.read(read, 65_536).decode()


def test_json_lines_carry_who_and_what(pipe: tuple[int, int]) -> None:
    read, write = pipe
    log.configure("json", "info", "ws", "2", fd=write, clock=ManualClock(1_700_000_000.5))
    log.get_logger("hub").info("client.opened", sockets=3, role="mine", path=b"/x")
    assert json.loads(text_of(read)) == {
        "level": "info", "ts": 1_700_000_000.5, "event": "client.opened", "role": "ws",
        "worker": "2", "part": "hub", "sockets": 3, "role_": "mine", "path": "/x",
    }


def test_secrets_are_redacted_by_key_at_any_depth(pipe: tuple[int, int]) -> None:
    read, write = pipe
    log.configure("json", "info", "", "", fd=write)
    log.get_logger("auth").info(
        "seen", admin_token="t0p", headers={"Authorization": "Bearer t0p", "Host": "x"},
        items=[{"password": "t0p"}], cookie="", session_token=None,
    )
    line = text_of(read)
    assert "t0p" not in line
    found = json.loads(line)
    assert found["headers"] == {"Authorization": "[redacted]", "Host": "x"}
    assert found["cookie"] == ""
    assert found["session_token"] is None


def test_levels_below_the_threshold_are_not_written(pipe: tuple[int, int]) -> None:
    read, write = pipe
    log.configure("json", "warning", "", "", fd=write)
    logger = log.get_logger("x")
    logger.debug("a")
    logger.info("b")
    logger.warning("c")
    logger.error("d")
    assert [json.loads(line)["event"] for line in text_of(read).splitlines()] == ["c", "d"]
    assert not logger.enabled("info")
    assert logger.enabled("error")


def test_exceptions_bring_their_traceback(pipe: tuple[int, int]) -> None:
    read, write = pipe
    log.configure("json", "info", "", "", fd=write)
    try:
        raise ValueError("broken")
    except ValueError as ex:
        log.get_logger("x").exception("failed", error=ex, row="r")
    found = json.loads(text_of(read))
    assert (found["error"], found["row"], found["level"]) == ("broken", "r", "error")
    assert "ValueError: broken" in found["trace"]


def test_pretty_lines_are_for_eyes(pipe: tuple[int, int]) -> None:
    read, write = pipe
    log.configure("pretty", "debug", "http", "1", fd=write, clock=ManualClock(3_661.25))
    log.get_logger("x").debug("listening", port=4321, note="two words", empty="")
    assert text_of(read) == (
        '01:01:01.250 debug   http/1     listening port=4321 note="two words" empty=""\n'
    )
    log.get_logger("x").exception("failed", error=ValueError("no"))
    assert "\nValueError: no\n" in text_of(read)


def test_journal_lines_carry_a_priority(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = pipe
    stat = os.fstat(write)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
    log.configure("json", "info", "", "", fd=write)
    log.get_logger("x").error("e")
    assert text_of(read).startswith('<3>{"level":"error"')


def test_library_lines_are_taken_over(pipe: tuple[int, int]) -> None:
    read, write = pipe
    log.configure("json", "info", "", "", fd=write)
    logging.getLogger("gunicorn.error").warning("worker %d", 7)
    logging.getLogger("gunicorn.error").info("chatter")
    found = json.loads(text_of(read))
    assert (found["event"], found["message"]) == ("library.gunicorn", "worker 7")


def test_odd_values_and_a_closed_stderr_stop_nobody(pipe: tuple[int, int]) -> None:
    read, write = pipe
    log.configure("json", "info", "", "", fd=write)
    log.get_logger("x").info("odd", lone="\udc80", long="y" * 20_000, thing=object())
    found = json.loads(text_of(read))
    assert found["lone"] == "?"
    assert len(found["long"]) < 9_000
    closed = os.dup(write)
    os.close(closed)
    log.configure("json", "info", "", "", fd=closed)
    log.get_logger("x").info("nobody hears this")
    assert os.fstat(read)


def test_a_dying_thread_is_reported(pipe: tuple[int, int]) -> None:
    read, write = pipe
    log.configure("json", "info", "", "", fd=write)
    reported: list[BaseException] = []
    hook = threading.excepthook
    threading.excepthook = log.thread_hook(reported.append)
    try:
        thread = threading.Thread(target=lambda: 1 // 0, name="doomed")
        thread.start()
        thread.join()
    finally:
        threading.excepthook = hook
    assert json.loads(text_of(read))["thread"] == "doomed"
    assert [type(error) for error in reported] == [ZeroDivisionError]
