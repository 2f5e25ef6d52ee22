"""The JavaScript client as the server serves it: files, ETags, the pinned address, the package."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pylon import __version__
from pylon.clientjs import PACKAGE, client_digest, client_files, client_package
from tests.support.api import ApiStage, serve_api
from tests.support.wide_app import wide_app

TODO_ORIGIN = "https://app.example.com"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiStage]:
    with serve_api(
        tmp_path_factory.mktemp("client"), wide_app(), {"PYLON_CORS_ORIGIN": TODO_ORIGIN}
    ) as stage:
        yield stage


def test_newest_file_is_asked_for_each_time_and_its_etag_saves_the_bytes(server: ApiStage) -> None:
    first = server.client.simulate_get("/client/pylon.js")
    assert first.status_code == 200
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    assert first.content == client_files()["pylon.js"]
    again = server.client.simulate_get(
        "/client/pylon.js", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


def test_pinned_file_never_changes_and_another_digest_is_unknown(server: ApiStage) -> None:
    pinned = server.client.simulate_get(f"/client/{client_digest()}/pylon.js")
    assert pinned.content == client_files()["pylon.js"]
    assert "immutable" in pinned.headers["cache-control"]
    assert server.client.simulate_get("/client/0123456789abcdef/pylon.js").status_code == 404
    assert server.client.simulate_get("/client/__init__.py").status_code == 404
    assert server.client.simulate_get("/client/../pylon.js").status_code == 404


@pytest.mark.parametrize("origin", [None, TODO_ORIGIN, "https://other.example"])
def test_every_origin_may_load_the_client(server: ApiStage, origin: str | None) -> None:
    headers = {"Origin": origin} if origin else {}
    answer = server.client.simulate_get("/client/pylon.js", headers=headers)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"


def test_gzip_is_another_representation(server: ApiStage) -> None:
    plain = server.client.simulate_get("/client/pylon.js")
    small = server.client.simulate_get("/client/pylon.js", headers={"Accept-Encoding": "br, gzip"})
    assert small.headers["content-encoding"] == "gzip"
    assert gzip.decompress(small.content) == plain.content
    assert small.headers["etag"] != plain.headers["etag"]
    assert "Accept-Encoding" in small.headers["vary"]


def test_package_has_the_files_and_the_version_of_the_server(server: ApiStage) -> None:
    answer = server.client.simulate_get(f"/client/{PACKAGE}")
    assert answer.content == client_package()
    with tarfile.open(fileobj=io.BytesIO(answer.content), mode="r:gz") as archive:
        names = {name.removeprefix("package/") for name in archive.getnames()}
        held = archive.extractfile("package/package.json")
        assert held is not None
        package = json.loads(held.read())
    assert names == set(client_files())
    assert package["version"] == __version__
    for entry in package["exports"].values():
        assert {path.removeprefix("./") for path in entry.values()} <= names


def test_types_are_complete(server: ApiStage) -> None:
    answer = server.client.simulate_get("/client/pylon.d.ts")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert b"./types/pylon.js" in answer.content
    assert server.client.simulate_get("/client/types/pylon.d.ts").status_code == 200


@pytest.mark.usefixtures("processes")
def test_install_writes_the_files_once(
    ctl: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "public" / "client"
    for changed in (len(client_files()), 0):
        done = ctl("client", "install", str(folder), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["changed"] == changed
    assert (folder / "pylon.js").read_bytes() == client_files()["pylon.js"]


KIB = 1024


@pytest.mark.parametrize(
    ("names", "budget_bytes"),
    [
        (("pylon.js",), 14 * KIB), (("pylon.js", "offline.js"), 20 * KIB),
        *((((name,), 3 * KIB)) for name in ("react.js", "preact.js", "vue.js", "svelte.js")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_files_stay_within_their_budget(names: tuple[str, ...], budget_bytes: int) -> None:
    sizes = {name: len(gzip.compress(client_files()[name], 9)) for name in names}
    assert sum(sizes.values()) <= budget_bytes, sizes
