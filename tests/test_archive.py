"""Archives: a folder, and a bucket of moto's server, keep the same promises."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pylon.archive.folder import FolderArchive
from pylon.archive.interface import Archive
from pylon.archive.url import open_archive
from pylon.errors import ArchiveUnavailable, BackupRefused
from pylon.storage.shipping.target import RestorePoint
from tests.support.shipping import ShippedDatabase


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@dataclass(frozen=True)
class Bucket:
    name: str
    access: dict[str, str]

    def open(self, prefix: str) -> Archive:
        return open_archive(f"s3://{self.name}/{prefix}", self.access)


@pytest.fixture
def bucket(bucket_server: str) -> Bucket:
    client = boto3.client(
        "s3", endpoint_url=bucket_server, region_name="us-east-1", aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    name = f"bucket-{os.urandom(4).hex()}"
    client.create_bucket(Bucket=name)
    return Bucket(name, {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": bucket_server,
    })


@pytest.fixture(params=["folder", "bucket"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Archive:
    if request.param == "folder":
        return open_archive(f"file://{tmp_path}/place%20of/backups", {})
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.open("some/prefix")


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[[bytes], Path]:
    def make(data: bytes) -> Path:
        path = tmp_path / f"file-{os.urandom(4).hex()}"
        path.write_bytes(data)
        return path

    return make


def test_objects_are_put_listed_read_replaced_and_deleted(
    archive: Archive, make_file: Callable[[bytes], Path], tmp_path: Path
) -> None:
    assert archive.list_objects() == []
    large = os.urandom(20 * 1024 * 1024)  # in parts
    archive.put("a/one.seg", make_file(b"1"))
    archive.put("a/b/large", make_file(large))
    archive.put("c", make_file(b""))
    archive.put("a/one.seg", make_file(b"11"))
    assert [(each.name, each.size_bytes) for each in archive.list_objects()] == [
        ("a/b/large", len(large)), ("a/one.seg", 2), ("c", 0),
    ]
    assert [each.name for each in archive.list_objects("a/b/")] == ["a/b/large"]
    assert archive.list_objects("nowhere/") == []
    archive.get("a/b/large", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == large
    archive.delete(["a/b/large", "a/one.seg", "missing"])
    assert [each.name for each in archive.list_objects()] == ["c"]


def test_missing_object_is_an_error_that_names_the_place(archive: Archive, tmp_path: Path) -> None:
    with pytest.raises(ArchiveUnavailable) as caught:
        archive.get("a/missing", tmp_path / "got")
    assert archive.place in str(caught.value)


def test_folder_shows_no_file_that_is_not_complete(
    tmp_path: Path, make_file: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = FolderArchive(tmp_path / "archive")

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArchiveUnavailable, match="No space left"):
        archive.put("a/one", make_file(b"1"))
    monkeypatch.undo()
    assert archive.list_objects() == []
    assert [path for path in (tmp_path / "archive").rglob("*") if path.is_file()] == []


def test_bucket_that_is_not_there_is_an_error(
    bucket: Bucket, make_file: Callable[[bytes], Path]
) -> None:
    archive = open_archive("s3://no-such-bucket-at-all/x", bucket.access)
    with pytest.raises(ArchiveUnavailable, match=r"NoSuchBucket|not exist|NotFound"):
        archive.put("a", make_file(b"1"))


@pytest.mark.parametrize(
    "url", ["https://example.com/x", "file://host/x", "file:///", "s3://", "s3://user@b/x",
            "s3://bucket/x?region=y", "/var/backups"],
)
def test_url_that_names_no_archive_is_refused(url: str) -> None:
    with pytest.raises(BackupRefused, match="is no archive"):
        open_archive(url, {})


def test_database_is_restored_from_a_bucket(bucket: Bucket, tmp_path: Path) -> None:
    live = ShippedDatabase(tmp_path)
    live.archive = bucket.open("app")
    live.start()
    live.snapshot()
    for _ in range(8):
        live.clock.advance(1)
        live.commit()
    live.capture_now()
    live.upload()
    live.stop()
    assert live.restore(RestorePoint(seq=5))[1] == 5
    assert live.restore(RestorePoint())[1] == 8
