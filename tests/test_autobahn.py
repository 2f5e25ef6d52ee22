"""Autobahn|Testsuite's fuzzing client against our WebSocket (RFC 6455 and RFC 7692).

Nothing may fail, and nothing may be right only leniently. The cases that push megabytes through
a client in Python 2 (limits and performance, 9.*, and the large ones of compression, 12.* and
13.*) are run with `PYLON_AUTOBAHN=all`, which takes a quarter of an hour; otherwise some of them
stand for all. Where the suite cannot be installed (`make test-tools` says why), the corpus of
tests/corpora/ws stands in.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.autobahn import Suite, UnavailableError, install

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2_400)]

ROOT: Final = Path(__file__).parent.parent
ALL: Final = os.environ.get("PYLON_AUTOBAHN") == "all"
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024  # of case 9.1.6
PROTOCOL: Final = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
# Of each group of the compression cases: 1,000 messages of 16, 64 and 256 bytes.
COMPRESSION: Final = [
    f"{part}.{group}.{case}" for part, groups in ((12, 5), (13, 7))
    for group in range(1, groups + 1) for case in (1, 2, 3)
]
LARGE: Final = ["9.1.3", "9.2.3", "9.3.5", "9.4.5", "9.5.3", "9.6.3", "9.7.1", "9.8.1", "12.1.8"]
# What RFC 6455 leaves open: how the peer's close is seen after bytes behind it (7.1.6), and
# close codes that nobody has registered (7.13.*).
INFORMATIONAL: Final = {"7.1.6", "7.13.1", "7.13.2"}


@pytest.fixture(scope="module")
def suite() -> Suite:
    try:
        return install()
    except UnavailableError as ex:
        pytest.skip(f"Autobahn|Testsuite cannot be installed here: {ex}")


@pytest.fixture
def echo_url(processes: None) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [
                sys.executable, "-m", "tests.support.websocket_echo", str(listener.fileno()),
                str(MAX_MESSAGE_BYTES), "deflate",
            ],
            cwd=ROOT, pass_fds=[listener.fileno()], stdout=subprocess.PIPE,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def behaviour(found: dict[str, Any]) -> dict[str, set[str]]:
    """The cases by what the suite says of them, of the messages or of the closing."""
    cases: dict[str, set[str]] = {}
    for case, outcome in found.items():
        for kind in {outcome["behavior"], outcome["behaviorClose"]}:
            cases.setdefault(kind, set()).add(case)
    return cases


def test_no_case_fails(suite: Suite, echo_url: str, tmp_path: Path) -> None:
    cases = ["*"] if ALL else [*PROTOCOL, *COMPRESSION, *LARGE]
    found = suite.run(echo_url, tmp_path, cases, timeout_s=2_300)
    print(Counter(outcome["behavior"] for outcome in found.values()))
    by_kind = behaviour(found)
    passed = by_kind.pop("OK")
    assert by_kind.pop("INFORMATIONAL") == INFORMATIONAL
    assert by_kind == {}, by_kind  # FAILED, NON-STRICT, UNIMPLEMENTED, UNCLEAN
    assert len(passed) == (514 if ALL else 247 - 3 + len(COMPRESSION) + len(LARGE))
