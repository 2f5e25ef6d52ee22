"""App manifest: the manifest of an app, from its JSON file or from its Python.

A PYLON_APP that imports `app` from `pylon` declares the manifest, and then PYLON_MANIFEST is not
read. A child process imports the file and prints JSON (`pylon.dsl.emit`). This process reads and
checks the JSON as it does that of a file, and never runs the app.

Invariants: the same source gives the same text, so a reload sees whether the manifest has changed.
Bounds: `limits.APP_IMPORT_S` for the import, `limits.MANIFEST_BYTES` for the text. A result is kept
until a file changes that the app has imported. Called by `pylon.startup` and by `pylonctl`.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec

from pylon import limits
from pylon.config import Config
from pylon.errors import StartRefused
from pylon.manifest.diagnostics import Diagnostic, ManifestInvalid, one_line
from pylon.manifest.model import Manifest
from pylon.manifest.places import SourcePlaces
from pylon.manifest_loader import load_manifest, parse_manifest

_ROOT: Final = Path(__file__).resolve().parent.parent  # the folder of the package `pylon`
_CHILD: Final = """
import sys
sys.path.append(sys.argv[1])
from pylon.dsl.emit import main
main(sys.argv[2])
"""
# The line of JSON that an error says to add.
_INDEX: Final = re.compile(
    r'add \{"name": "(\w+)", "fields": \[([^]]*)\], "unique": false\} to the indexes of (\w+)'
)
Stamps = dict[str, tuple[int, int]]  # modification time in ns and size of each file


@dataclass(frozen=True, slots=True)
class DeclaredManifest:
    """A manifest in Python: the document, its text, and the places of its parts."""

    document: dict[str, Any]
    text: str
    places: SourcePlaces
    files: tuple[str, ...]  # the Python files of the app that were imported


_kept: dict[str, tuple[Stamps, DeclaredManifest]] = {}


def read_app_manifest(config: Config, *, strict: bool = False) -> Manifest:
    """Return the checked manifest of the app of these settings.

    Args:
        strict: unknown keys are errors, not warnings.

    Raises:
        ManifestInvalid: with every diagnostic, at its place in JSON or Python.
        StartRefused: the import takes too long.
    """
    if not declares_manifest(config.app):
        return load_manifest(Path(config.manifest), strict=strict)
    return read_python_manifest(str(config.app), strict=strict)


def read_python_manifest(app: str, *, strict: bool = False) -> Manifest:
    """Return the checked manifest that a Python file declares.

    Raises:
        ManifestInvalid, StartRefused: see `read_app_manifest`.
    """
    found = declared_manifest(app)
    try:
        manifest = parse_manifest(found.text, app, strict=strict, places=found.places)
    except ManifestInvalid as ex:
        raise ManifestInvalid([_in_python(diagnostic) for diagnostic in ex.diagnostics]) from ex
    return replace(manifest, places=found.places.by_path)


def read_manifest_file(path: str, *, strict: bool = False) -> Manifest:
    """Return the checked manifest of a JSON file, or of a Python file by its ending ``.py``.

    Raises:
        ManifestInvalid, StartRefused: see `read_app_manifest`.
    """
    if path.endswith(".py"):
        return read_python_manifest(path, strict=strict)
    return load_manifest(Path(path), strict=strict)


def app_file(config: Config) -> str:
    """Return the file that declares the app's manifest: that of PYLON_APP, or of PYLON_MANIFEST."""
    return str(config.app) if declares_manifest(config.app) else config.manifest


@contextmanager
def manifest_json(config: Config) -> Iterator[Path]:
    """Yield the JSON file of the app's manifest; of a declared one a temporary file.

    Raises:
        ManifestInvalid, StartRefused: see `declared_manifest`.
    """
    if not declares_manifest(config.app):
        yield Path(config.manifest).absolute()
        return
    with TemporaryDirectory(prefix="pylon-manifest-") as folder:
        file = Path(folder) / "pylon.manifest.json"
        file.write_text(declared_manifest(str(config.app)).text, encoding="utf-8")
        yield file


def declares_manifest(app: str | None) -> bool:
    """Whether a Python file declares a manifest: it imports `app` from `pylon`."""
    if app is None:
        return False
    try:
        tree = ast.parse(Path(app).read_bytes())
    except (OSError, ValueError):
        return False
    except SyntaxError:
        return "Entity" in Path(app).read_text(errors="replace")  # the import will say it
    return any(
        isinstance(node, ast.ImportFrom) and node.module == "pylon"
        and any(alias.name == "app" for alias in node.names)
        for node in tree.body
    )


def document_text(document: Mapping[str, Any]) -> str:
    """Return the text of a manifest as `pylonctl manifest build` writes it."""
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def declared_manifest(app: str) -> DeclaredManifest:
    """Return what a Python file declares; not yet checked.

    Raises:
        ManifestInvalid: the file cannot be imported, or declares what has no form in JSON.
        StartRefused: the import takes too long.
    """
    kept = _kept.get(app)
    if kept is not None and _stamps(kept[1].files) == kept[0]:
        return kept[1]
    printed = _run_child(app)
    files = tuple(printed.get("files", (app,)))
    stamps = _stamps(files)
    if "problems" in printed:
        raise ManifestInvalid([_diagnostic(problem, app) for problem in printed["problems"]])
    places = {path: [_shown(place[0]), *place[1:]] for path, place in printed["places"].items()}
    found = DeclaredManifest(
        printed["manifest"], document_text(printed["manifest"]), SourcePlaces(app, places), files
    )
    if len(found.text.encode()) > limits.MANIFEST_BYTES:
        raise _whole_app(app, f"the manifest is larger than {limits.MANIFEST_BYTES} bytes")
    _kept[app] = stamps, found
    return found


def _run_child(app: str) -> dict[str, Any]:
    command = [sys.executable, "-P", "-c", _CHILD, str(_ROOT), app]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=limits.APP_IMPORT_S, check=False,
        )
    except subprocess.TimeoutExpired as ex:
        raise StartRefused(
            f"PYLON_APP is {app}: its import takes longer than {limits.APP_IMPORT_S:g} s"
        ) from ex
    try:
        printed = json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"its import ended with {done.returncode}"
        raise _whole_app(app, why) from None
    if not isinstance(printed, dict):
        raise _whole_app(app, "its import printed no manifest")
    return printed


def _diagnostic(problem: Mapping[str, Any], app: str) -> Diagnostic:
    place = problem["place"] or [app, None, None]
    return Diagnostic(
        "error", problem["code"], one_line(problem["message"]), _shown(place[0]), place[1],
        place[2], problem["hint"],
    )


def _in_python(diagnostic: Diagnostic) -> Diagnostic:
    """Return the diagnostic with an index that it asks for in the spelling of Python."""
    message = _INDEX.sub(
        lambda index: f"add {index[1]} = index({index[2]}) to {index[3]}", diagnostic.message
    )
    return msgspec.structs.replace(diagnostic, message=message)


def _whole_app(app: str, message: str) -> ManifestInvalid:
    return ManifestInvalid([Diagnostic("error", "MANIFEST_PARSE_ERROR", one_line(message), app)])


def _shown(file: str) -> str:
    """Return a file's name relative to the working directory, if it lies below."""
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative


def _stamps(files: tuple[str, ...]) -> Stamps:
    found: Stamps = {}
    for file in files:
        try:
            stat = Path(file).stat()
        except OSError:
            continue
        found[file] = (stat.st_mtime_ns, stat.st_size)
    return found
