"""Problems of a start are found without starting: one line for each, never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pylon.config import load
from pylon.data_dir import data_dir_problems
from pylon.errors import StartRefused
from pylon.manifest.model import Manifest
from pylon.startup import find_problems, load_checked, read_manifest, start_warnings
from tests.support.manifests import notes_app

# Modes do not stop root, so root learns it from the attempt to make a file.
NO_FILE_IN_PROC = (
    "no file can be made in /proc" if os.geteuid() == 0 else "/proc is not writable"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a manifest, and things that are not what settings want."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pylon.manifest.json").write_text(json.dumps(notes_app()))
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    (tmp_path / "garbage.db").write_bytes(b"garbage" * 1_000)
    note = {"title": "a", "ownerId": "o", "shared": True, "slug": "s"}
    (tmp_path / "twice.json").write_text(json.dumps({"Note": [note, note | {"title": "b"}]}))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "seed.json").write_text('{"Note": [{"title": 7}]}')
    return tmp_path


def problems(**env: str) -> list[str]:
    loaded = load({"PYLON_CORS_ORIGIN": "https://app.example.com", **env})
    manifest: Manifest | StartRefused
    try:
        manifest = read_manifest(loaded.config)
    except StartRefused as refused:
        manifest = refused
    start_warnings(loaded, manifest if isinstance(manifest, Manifest) else None)
    return [problem.message for problem in find_problems(loaded, {}, manifest)]


def test_a_good_folder_has_no_problem_and_stays_as_it_is(folder: Path) -> None:
    before = sorted(folder.iterdir())
    assert problems() == []
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(("env", "words"), [
    ({"PYLON_DB_PATH": "/proc/none/app.db"}, NO_FILE_IN_PROC),
    ({"PYLON_DB_PATH": "x" * 300}, "too long"), ({"PYLON_DB_PATH": "loop/a.db"}, "not a folder"),
    ({"PYLON_DB_PATH": "folder"}, "a folder: name a file"),
    ({"PYLON_DB_PATH": "fifo"}, "not a plain file"),
    ({"PYLON_DB_PATH": "garbage.db"}, "not a database"),
    ({"PYLON_DB_PATH": "garbage.db/a.db"}, "garbage.db is not a folder"),
    ({"PYLON_MANIFEST": "folder"}, "Is a directory"), ({"PYLON_MANIFEST": "loop"}, "symbolic"),
    ({"PYLON_STATIC_DIR": "loop"}, "not a folder"), ({"PYLON_APP": "folder"}, "not a file"),
    ({"PYLON_STATIC_DIR": "."}, "PYLON_DB_PATH"), ({"PYLON_SEED": "folder"}, "Is a directory"),
    ({"PYLON_SEED": "twice.json"}, "Note[1]: Note.slug must be unique"),
    ({"PYLON_SEED": "seed.json"}, "Note[0]"), ({"PYLON_SEED": "none.json"}, "No such file"),
    ({"PYLON_RUNTIME_DIR": "fifo/x"}, "fifo is not a folder"),
    ({"PYLON_RUNTIME_DIR": "loop"}, "symbolic links"), ({"PYLON_RUNTIME_DIR": "/tmp"}, "its own"),
    ({"PYLON_RUNTIME_DIR": "garbage.db"}, "not a folder"),
    ({"PYLON_PORT": "65535"}, "would be 65536"), ({"DATABASE_URL": "mysql://h/d"}, "DATABASE"),
    ({"PYLON_CSRF_ORIGINS": "*"}, "PYLON_CSRF_ORIGINS"), ({"PYLON_DEV_MODE": "1"}, "ADMIN_TOKEN"),
])
def test_each_problem_is_one_line_that_names_it(
    folder: Path, env: dict[str, str], words: str
) -> None:
    if env.get("PYLON_RUNTIME_DIR") == "/tmp" and os.geteuid() != 0:
        pytest.skip("/tmp belongs to root")
    found = problems(**env)
    assert [line for line in found if words in line], found
    assert not [line for line in found if "\n" in line]


def test_the_checks_of_a_start_and_of_check_config_agree(folder: Path) -> None:
    loaded = load({"PYLON_CSRF_ORIGINS": "null", "DATABASE_URL": "mysql://u:p@h/d"})
    with pytest.raises(StartRefused) as refused:
        load_checked(loaded)
    found = problems(PYLON_CSRF_ORIGINS="null", DATABASE_URL="mysql://u:p@h/d")
    assert refused.value.message == found[0]


@pytest.mark.parametrize(("mode", "dev", "refused"), [
    (0o700, False, False), (0o755, False, False), (0o1777, False, False), (0o777, False, True),
    (0o777, True, False),
])
def test_a_folder_where_anybody_may_replace_files_is_refused_in_production(
    folder: Path, mode: int, dev: bool, refused: bool
) -> None:
    (folder / "folder").chmod(mode)
    env: dict[str, Any] = {"PYLON_DB_PATH": "folder/app.db", "PYLON_DEV_MODE": str(int(dev))}
    assert bool(data_dir_problems(load(env).config)) is refused
