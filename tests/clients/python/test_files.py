"""Files by both clients: small ones, large ones in pieces, lost connections, links."""

from __future__ import annotations

import hashlib
import io
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon_client import NotFoundError, files
from tests.clients.python.app import MANIFEST
from tests.clients.python.both import both, entered, got
from tests.support.fault_proxy import FaultProxy
from tests.support.server import PylonServer


@pytest.fixture(scope="module")
def proxy(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    server = PylonServer(tmp_path_factory.mktemp("u"), MANIFEST, {"PYLON_DEV_MODE": "true"})
    try:
        server.start()
        if server.request("POST", "/api/files/init", {"filename": "x"})[0] == 404:
            pytest.skip("this server has no uploads in pieces yet")
        with FaultProxy([("127.0.0.1", server.port)]) as made:
            yield made
    finally:
        server.close()


@pytest.fixture
def url(proxy: FaultProxy) -> Iterator[str]:
    yield f"http://127.0.0.1:{proxy.ports[0]}"
    proxy.heal()


@both
async def test_a_small_file_goes_up_and_comes_back(make, url: str, tmp_path: Path) -> None:
    async with entered(make(url)) as app, entered(make(url)) as other:
        await got(app.auth.guest())
        await got(other.auth.guest())
        seen: list[tuple[int, int | None]] = []
        stored = await got(app.files.upload(
            b"hello", name="grüße.txt", on_progress=lambda *progress: seen.append(progress)
        ))
        assert (stored.size, seen) == (5, [(5, 5)])
        assert stored.sha256 == hashlib.sha256(b"hello").hexdigest()
        target = tmp_path / "back.txt"
        assert await got(app.files.download(stored.id, target)) == 5
        assert target.read_bytes() == b"hello"
        assert [path.name for path in tmp_path.iterdir()] == ["back.txt"]
        described = await got(app.files.get(stored.id))
        assert (described.size, described.sha256) == (5, stored.sha256)
        assert stored.id in [each.id for each in await got(app.files.list())]
        with pytest.raises(NotFoundError):
            await got(other.files.download(stored.id, tmp_path / "stolen"))
        assert not (tmp_path / "stolen").exists()
        link = await got(app.files.sign(stored.id, expires_s=60))
        with urllib.request.urlopen(link, timeout=30) as answer:
            assert answer.read() == b"hello"
        await got(app.files.delete(stored.id))
        with pytest.raises(NotFoundError):
            await got(app.files.get(stored.id))


@both
async def test_a_large_file_survives_lost_connections(
    make, url: str, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIECE_BYTES", 256 * 1024)
    monkeypatch.setattr(files, "_PAUSE_S", 0.05)
    content = os.urandom(1_500_000)
    source = tmp_path / "large.bin"
    source.write_bytes(content)
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        cuts = 0

        def cut_sometimes(done: int, size: int | None) -> None:
            nonlocal cuts
            if cuts < 3:
                cuts += 1
                proxy.cut()

        stored = await got(app.files.upload(source, on_progress=cut_sometimes))
        assert stored.size == len(content)
        cuts = 0
        sink = io.BytesIO()
        await got(app.files.download(stored.id, sink, on_progress=cut_sometimes))
        assert sink.getvalue() == content
        empty = await got(app.files.upload(b"", name="empty.bin"))
        sink = io.BytesIO()
        assert await got(app.files.download(empty.id, sink)) == 0
