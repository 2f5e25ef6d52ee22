"""deploy/docker: the Dockerfile, followed step by step on a Debian 12, and its container."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import IN_CI
from tests.support.debian import UnavailableError, install
from tests.support.image import Container, Image, build_image, instructions
from tests.support.wait import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
GET = (
    "import sys, urllib.request\n"
    "print(urllib.request.urlopen('http://127.0.0.1:4321' + sys.argv[1], timeout=30).status)"
)


@pytest.fixture(scope="module")
def image(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    try:
        install()
    except UnavailableError as ex:
        if IN_CI and os.geteuid() == 0:
            pytest.fail(f"in CI nothing installable is skipped: {ex}")
        pytest.skip(str(ex))
    with ExitStack() as stack:
        yield build_image(DOCKERFILE, tmp_path_factory.mktemp("image"), stack)


@pytest.fixture
def container(image: Image, tmp_path: Path) -> Iterator[Container]:
    """The container, with the example's manifest and an env file as its secret."""
    secrets = tmp_path / "pylon.env"
    secrets.write_text(
        f"PYLON_CORS_ORIGIN=https://app.example.com\nPYLON_ADMIN_TOKEN={'t' * 40}\n"
    )
    secrets.chmod(0o444)
    manifest = ROOT / "examples" / "todo" / "pylon.manifest.json"
    binds = [f"{manifest}:/app/pylon.manifest.json", f"{secrets}:/etc/pylon/pylon.env"]
    with Container(image, tmp_path, {}, binds) as running:
        try:
            wait_until(
                "the health check passes", lambda: running.execute(*image.health).returncode == 0,
                60,
            )
        except AssertionError as ex:
            raise AssertionError(f"{running.execute(*image.health)}\n{running.log()}") from ex
        yield running


def test_server_is_the_first_process_of_uid_10001_and_its_root_is_read_only(
    container: Container,
) -> None:
    status = Path(f"/proc/{container.pid}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == ["10001"] * 4
    assert facts["NSpid"].split()[-1] == "1"
    assert container.execute("touch", "/opt/pylon/x").returncode != 0
    assert container.execute("python3", "-c", GET, "/readyz").stdout == "200\n"
    found = json.loads(container.execute("pylonctl", "status", "--json").stdout)
    assert (found["pid"], found["ready"]) == (1, True)
    assert "/etc/pylon/pylon.env" in container.execute("pylonctl", "config").stdout


def test_first_process_reaps_orphans_and_term_drains(container: Container) -> None:
    container.execute("sh", "-c", "(sleep 0.1; true) & exec true")
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children")

    def zombies() -> list[str]:
        states = [Path(f"/proc/{pid}/stat") for pid in children.read_text().split()]
        return [s.read_text() for s in states if s.exists() and ") Z " in s.read_text()]

    wait_until("no zombie is left", lambda: zombies() == [])
    assert container.stop() == 0
    assert "drain" in container.log()


def test_folder_that_the_user_cannot_write_to_is_named(image: Image, tmp_path: Path) -> None:
    image_of_root = Image(**{**vars(image), "volumes": ["/run/pylon", "/tmp"]})
    (image.root / "data").chmod(0o500)
    try:
        container = Container(image_of_root, tmp_path, {}, [])
        assert container.run() == 78
        assert "chown -R 10001:10001" in container.log()
    finally:
        (image.root / "data").chmod(0o700)


def test_image_is_as_the_guide_says() -> None:
    found = instructions(DOCKERFILE)
    names = [name for name, _ in found]
    assert names.count("FROM") == 2
    last = dict(found[max(i for i, name in enumerate(names) if name == "FROM"):])
    assert last["USER"] == "10001:10001"
    assert json.loads(last["VOLUME"]) == ["/data", "/run/pylon", "/tmp"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert "curl" not in DOCKERFILE.read_text()
