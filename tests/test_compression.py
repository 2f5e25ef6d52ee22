"""Compressed responses: which ones, in which encoding, and with which headers."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from pylon import limits, metrics
from pylon.api.http import compression
from pylon.api.http.compression import choose_encoding
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.measured import total

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "large", "version": "1.0.0",
    "entities": [{"name": "Note", "crdt": False, "fields": [
        {"name": "text", "type": "string", "optional": False, "unique": False},
    ]}],
    "policies": [{"name": "all", "entity": "Note", "allow": "true"}],
}
DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress, "zstd": zstd.decompress,
}


@pytest.mark.parametrize(("accepted", "chosen"), [
    (None, None), ("", None), ("identity", None), ("br", None), ("gzip", "gzip"),
    ("zstd", "zstd"), ("gzip, deflate, br, zstd", "zstd"), ("GZIP;q=1.0, zstd;q=0.5", "gzip"),
    ("zstd;q=0, gzip", "gzip"), ("*", "zstd"), ("*;q=0", None), ("gzip;q=0, *", "zstd"),
    ("gzip;q=x", None), ("gzip ; q=0.2", "gzip"), ("zstd;q=0,*;q=0.1", "gzip"),
])
def test_the_encoding_of_the_best_quality_is_chosen(
    accepted: str | None, chosen: str | None
) -> None:
    assert choose_encoding(accepted) == chosen


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiStage]:
    with serve_api(tmp_path_factory.mktemp("large"), MANIFEST) as made:
        changes = [
            {"kind": "insert", "entity": "Note", "row_id": f"_pending_{n}",
             "data": {"text": f"note {n} " + "abc " * 40}} for n in range(400)
        ]
        for start in range(0, len(changes), 100):
            sent = made.call(
                "POST", "/api/sync/push", {"changes": changes[start : start + 100]}, ADMIN_TOKEN
            )
            assert sent.json["applied"] == 100, sent.text
        yield made


TARGETS: list[tuple[str, str, Any]] = [
    ("GET", "/api/entities/Note", None),
    ("GET", "/api/entities/Note/cursor?limit=400", None),
    ("POST", "/api/query/Note", {}),
    ("POST", "/api/query", {"Note": {}}),
    ("GET", "/api/sync/pull?since=0", None),
    ("GET", "/api/sync/pull?since=1", None),
    ("GET", "/api/export/Note", None),
]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize(("method", "target", "body"), TARGETS)
def test_a_large_response_is_compressed(
    server: ApiStage, method: str, target: str, body: Any, encoding: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pylon.api.sync.pull._SMALL_BYTES", 1_000)  # a streamed snapshot
    plain = server.call(method, target, body, ADMIN_TOKEN)
    packed = server.call(
        method, target, body, ADMIN_TOKEN, headers={"Accept-Encoding": encoding}
    )
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == encoding
    for answer in (plain, packed):
        assert "Accept-Encoding" in answer.headers["vary"]
        assert "etag" not in answer.headers
    assert len(packed.content) < len(plain.content) / 3
    found = orjson.loads(DECODERS[encoding](packed.content))
    if isinstance(found, dict):  # the time of an export differs
        assert found.keys() == plain.json.keys()
        found, wanted = ({**f, "exported_at": 0} for f in (found, plain.json))
        assert found == wanted
    else:
        assert found == plain.json


def test_a_small_response_and_one_to_head_are_not_compressed(server: ApiStage) -> None:
    headers = {"Accept-Encoding": "gzip"}
    small = server.call("GET", "/api/entities/Note?limit=1", headers=headers)
    head = server.call("HEAD", "/api/entities/Note", headers=headers)
    for answer in (small, head):
        assert "content-encoding" not in answer.headers
        assert "Accept-Encoding" in answer.headers["vary"]
    row = server.call("GET", f"/api/entities/Note/{small.json['data'][0]['id']}", headers=headers)
    assert "etag" in row.headers and "content-encoding" not in row.headers


def test_too_many_responses_at_once_go_out_uncompressed(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = total(metrics.COMPRESSED_RESPONSES, encoding="none")
    monkeypatch.setattr(limits, "COMPRESSED_RESPONSES", 0)
    answer = server.call("GET", "/api/entities/Note", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in answer.headers
    assert total(metrics.COMPRESSED_RESPONSES, encoding="none") == before + 1


def test_a_stream_that_ends_early_gives_its_place_back(server: ApiStage) -> None:
    made = compression.Compression()
    closed: list[bool] = []

    def pieces() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 1_000_000
        finally:
            closed.append(True)

    stream = made._compress("zstd", pieces())
    assert next(stream)
    assert made._running == 1
    stream.close()  # type: ignore[attr-defined]
    assert made._running == 0 and closed == [True]


def test_pieces_together_are_one_document() -> None:
    made = compression.Compression()
    texts = [b"a" * 100_000, b"", b"b" * 10]
    packed = list(made._compress("gzip", texts))
    assert all(packed)
    assert zlib.decompress(b"".join(packed), 31) == b"".join(texts)
