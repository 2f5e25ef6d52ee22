"""The HTTP server against a corpus of requests, over real sockets, whole and in pieces.

A case is a file of tests/corpora/http_requests: `expect:` lines (a status, and for the echo app
what it must have been asked), `then:` whether the connection stays open, and after `---` the
bytes, with Python's escapes; line ends of the file itself do not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.echo import echo_server
from tests.support.wire import Response, Wire

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.timeout(240)]

FOLDER = Path(__file__).parent / "corpora" / "http_requests"
PARTS = re.compile(
    r"(?P<asked>.*?)(?: host=(?P<host>.*?))?(?: x=(?P<x>.*?))?(?: cookie=(?P<cookie>.*?))?"
    r"(?: body=(?P<body>.*))?", re.DOTALL,
)
PROBE = b"GET /probe HTTP/1.1\r\nHost: h\r\n\r\n"


@dataclass(frozen=True)
class Case:
    name: str
    expect: tuple[str, ...]
    stays_open: bool
    data: bytes

    @property
    def is_valid(self) -> bool:
        return self.name.startswith("valid/")


def unescaped(text: str) -> str:
    return text.encode("latin-1").decode("unicode_escape")


def read_case(path: Path) -> Case:
    head, _, data = path.read_text().partition("---\n")
    lines = head.splitlines()
    expect = tuple(line[8:] for line in lines if line.startswith("expect: "))
    then = [line[6:] for line in lines if line.startswith("then: ")]
    assert len(then) == 1, path
    assert then[0] in ("open", "closed"), path
    raw = unescaped(data.replace("\n", "")).encode("latin-1")
    return Case(f"{path.parent.name}/{path.stem}", expect, then[0] == "open", raw)


CASES = [read_case(path) for path in sorted(FOLDER.glob("*/*.http"))]
VALID = [case for case in CASES if case.is_valid]
by_name = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture(scope="module")
def port(processes: None) -> Iterator[int]:
    with echo_server() as (port, _):
        yield port


def check(expected: str, wire: Wire) -> None:
    status, _, asked = expected.partition(" ")
    answer = wire.read_response(is_bodiless=asked == "HEAD")
    while answer.status == 100:
        answer = wire.read_response(is_bodiless=asked == "HEAD")
    assert answer.status == int(status), answer
    if asked == "HEAD":
        assert answer.body == b""
    elif asked == "stream":
        assert answer.body == b"first,second,third"
    elif asked:
        check_parts(asked, answer)
    elif answer.status < 400:
        assert answer.body == b""
    else:
        assert b'"error"' in answer.body
        assert answer.headers["connection"] == "close"


def check_parts(asked: str, answer: Response) -> None:
    wanted, got = PARTS.fullmatch(unescaped(asked)), PARTS.fullmatch(answer.body.decode("latin-1"))
    assert wanted is not None
    assert got is not None
    for name, value in wanted.groupdict().items():
        assert value is None or got[name] == value, answer


def check_all(case: Case, wire: Wire) -> None:
    for expected in case.expect:
        check(expected, wire)
    if case.stays_open:
        wire.send(PROBE)
        check("200 GET /probe", wire)
    else:
        assert wire.read_rest() == b""


def test_the_corpus_is_there() -> None:
    assert len(VALID) >= 60
    assert len(CASES) - len(VALID) >= 90


@by_name
def test_whole(case: Case, port: int) -> None:
    with Wire(port) as wire:
        wire.send(case.data)
        check_all(case, wire)


@by_name
def test_byte_by_byte(case: Case, port: int) -> None:
    if len(case.data) > 1_200:
        data = [case.data[at:at + 997] for at in range(0, len(case.data), 997)]
    else:
        data = [case.data[at:at + 1] for at in range(len(case.data))]
    with Wire(port) as wire:
        for piece in data:
            wire.send(piece)
        check_all(case, wire)


FUZZ = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.data())
def test_cut_anywhere(port: int, data: st.DataObject) -> None:
    """Cut at arbitrary places, several requests on one connection: the answers are the same."""
    cases = data.draw(st.lists(
        st.sampled_from([case for case in VALID if case.stays_open and len(case.data) < 2_000]),
        min_size=1, max_size=4,
    ))
    stream = b"".join(case.data for case in cases)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    with Wire(port) as wire:
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            wire.send(stream[begin:end])
        for case in cases:
            for expected in case.expect:
                check(expected, wire)
        wire.send(PROBE)
        check("200 GET /probe", wire)


@FUZZ
@given(data=st.data())
def test_mutated(port: int, data: st.DataObject) -> None:
    """Whatever arrives: an answer that is no 500 or the end, and the server goes on."""
    case = data.draw(st.sampled_from(CASES))
    stream = bytearray(case.data[:4_000])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(stream)))
        kind = data.draw(st.sampled_from(["set", "insert", "delete", "repeat"]))
        piece = data.draw(st.one_of(
            st.binary(min_size=1, max_size=4),
            st.sampled_from([b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"0\r\n\r\n",
                             b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"]),
        ))
        if kind == "set":
            stream[at:at + len(piece)] = piece
        elif kind == "insert":
            stream[at:at] = piece
        elif kind == "delete":
            del stream[at:at + len(piece)]
        else:
            stream[at:at] = stream[max(0, at - 40):at]
    with Wire(port) as wire:
        wire.send(bytes(stream))
        wire.sock.shutdown(1)  # no more will come, so nothing may be waited for
        got = wire.read_rest()
    assert b"HTTP/1.1 5" not in got.replace(b"HTTP/1.1 505", b"").replace(b"HTTP/1.1 501", b"")
    with Wire(port) as wire:
        wire.send(PROBE)
        check("200 GET /probe", wire)
