"""The code of docs/clients/javascript.md: every block runs, in its order, on the example chat."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pylon import clientjs
from tests.clients.test_javascript import run_node
from tests.support.server import PylonServer

ROOT = Path(__file__).parents[2]
CLIENT = Path(clientjs.__file__).parent
PAGE = (ROOT / "docs" / "clients" / "javascript.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.usefixtures("processes")
def test_every_block_runs(make_server: Callable[..., PylonServer], tmp_path: Path) -> None:
    manifest = json.loads((ROOT / "examples" / "chat" / "pylon.manifest.json").read_text())
    server = make_server(manifest, PYLON_DEV_MODE="true").start()
    code = "\n".join(blocks("js")).replace("http://localhost:4321", f"http://127.0.0.1:{server.port}")
    code = code.replace('"pylon-client"', json.dumps(f"{CLIENT}/pylon.js"))
    code = code.replace('"pylon-client/offline"', json.dumps(f"{CLIENT}/offline.js"))
    script = tmp_path / "page.mjs"
    script.write_text(code + '\nconsole.log("the end");\n')
    printed = run_node(script, timeout_s=60).splitlines()
    assert printed[-1] == "the end"
    assert any("POLICY" in line or "INVALID" in line or "UNKNOWN" in line for line in printed), (
        printed)


@pytest.mark.usefixtures("processes")
def test_types_of_the_page_hold(tmp_path: Path) -> None:
    compiler = ROOT / "web" / "node_modules" / ".bin" / "tsc"
    if not compiler.exists() or shutil.which("node") is None:
        pytest.skip("the TypeScript compiler is not installed (make web)")
    package = tmp_path / "node_modules" / "pylon-client"
    shutil.copytree(CLIENT, package, ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "page.ts"
    wrong = (
        'typed.live("Massage");', 'typed.live("Message", { where: { txt: "a" } });',
        'typed.insert("Message", { text: 7 });',
        'typed.query("Message", { order: { text: "up" } });',
    )
    script.write_text(
        'import { pylon } from "pylon-client";\n' + blocks("ts")[0]
        + 'typed.live("Message", { where: { text: { $startsWith: "a" } } });\n'
        + 'typed.query("Message", { order: { text: "asc" } });\n'
        + "".join(f"// @ts-expect-error\n{line}\n" for line in wrong)
    )
    done = subprocess.run(
        [str(compiler), "--strict", "--noEmit", "--module", "nodenext", "--target", "es2022",
         "--types", "", str(script)],
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120,
    )
    assert done.returncode == 0, done.stdout
