"""The examples of docs/clients/python.md run, and their types hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import ADMIN_TOKEN, PylonServer

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "clients" / "python"
PAGE = ROOT / "docs" / "clients" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
PYRIGHT_S = 240


@pytest.fixture(scope="module")
def chat(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    manifest = json.loads((ROOT / "examples" / "chat" / "pylon.manifest.json").read_text())
    server = PylonServer(tmp_path_factory.mktemp("c"), manifest, {
        "PYLON_DEV_MODE": "true", "PYLON_APP": str(Path(__file__).with_name("board.py")),
    })
    try:
        yield server.start()
    finally:
        server.close()


def test_the_examples_of_the_documentation_run(
    chat: PylonServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYLON_URL", f"http://127.0.0.1:{chat.port}")
    monkeypatch.chdir(tmp_path)
    has_files = chat.request("POST", "/api/files/init", {"filename": "x"})[0] != 404
    names: dict[str, object] = {"admin_token": ADMIN_TOKEN, "__name__": "examples"}
    ran = 0
    for block in BLOCKS:
        if "app.files" in block and not has_files:
            continue
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
        ran += 1
    assert ran >= len(BLOCKS) - 1


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """The examples as one module."""
    found = tmp_path / "examples.py"
    found.write_text("admin_token = ''\n" + "\n".join(BLOCKS))
    return found


@pytest.mark.usefixtures("processes")
def test_mypy_accepts_the_client_and_the_examples(examples: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary",
         "--cache-dir", str(examples.parent / "cache"), str(PACKAGE / "src"), str(examples)],
        capture_output=True, text=True, cwd=PACKAGE, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.usefixtures("processes")
def test_pyright_accepts_the_client_and_the_examples(examples: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("pyright needs Node.js (apt-get install nodejs)")
    config = examples.with_name("pyrightconfig.json")
    config.write_text(json.dumps({
        "include": [str(examples), str(PACKAGE / "src")], "pythonVersion": "3.11",
        "typeCheckingMode": "standard",
    }))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pyright", "-p", str(config), "--pythonpath", sys.executable],
            capture_output=True, text=True, check=False, timeout=PYRIGHT_S,
            env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"pyright did not end within {PYRIGHT_S} s; it loads itself from npm at first")
    if "npm" in done.stderr and done.returncode not in (0, 1):
        pytest.skip(f"pyright cannot be loaded from npm: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stdout + done.stderr
