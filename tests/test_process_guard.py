"""tests.support.process_guard: the mark `processes` is true of every test."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.process_guard import is_python


def test_unmarked_test_cannot_start_python() -> None:
    with pytest.raises(AssertionError, match="lacks the fixture 'processes'"):
        subprocess.run([sys.executable, "-c", "pass"], check=True)


def test_unmarked_test_cannot_fork() -> None:
    with pytest.raises(AssertionError, match=r"os\.fork"):
        os.fork()


def test_unmarked_test_may_start_other_programs() -> None:
    assert subprocess.run(["true"], check=False).returncode == 0


@pytest.mark.usefixtures("processes")
def test_mark_follows_the_fixture(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("processes") is not None
    assert subprocess.run([sys.executable, "-c", "pass"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python3.12", "-m", "pylon"], True),
        (["unshare", "--net", sys.executable], True),
        (["/opt/pylon/bin/pylonctl", "start"], True),
        ("true", False),
        (["cat", "python.txt"], True),  # rather one mark too many
        (["tar", "-x"], False),
    ],
)
def test_python_is_found_behind_a_wrapper(command: str | list[str], expected: bool) -> None:
    assert is_python((None, command)) is expected
