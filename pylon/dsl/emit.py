"""Emit: imports an app's Python file in this process, and prints the manifest that it declares.

`pylon.app_manifest` starts it as a process of its own, so the server never runs the file for its
manifest. It prints one JSON object:

    {"manifest": {...}, "files": [...], "places": {"/entities/0/name": [file, line, column]}}
    {"problems": [{"code", "message", "hint", "place": [file, line, column]}], "files": [...]}

`files` are the Python files that the app has imported from its own folder. A place of a text also
has the runs of its characters (`pylon.dsl.places`). What the app prints goes to stderr.
"""

from __future__ import annotations

import builtins
import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from pylon.dsl.document import DocumentRefused, Problem, build_document
from pylon.dsl.places import Place
from pylon.nearest_names import name_hint

MODULE_NAME: Final = "pylon_app"


def main(app: str) -> None:
    """Import the file `app` and print its manifest, or its problems."""
    out = os.dup(1)
    os.dup2(2, 1)
    problems: tuple[Problem, ...] = ()
    printed: dict[str, Any] = {}
    try:
        _import_app(Path(app))
        document, places = build_document()
        printed = {
            "manifest": document,
            "places": {"".join(f"/{part}" for part in path): _place(place)
                       for path, place in places.items()},
        }
    except DocumentRefused as ex:
        problems = ex.problems
    except Exception as ex:  # noqa: BLE001  (an app may raise anything while it is imported)
        problems = (_import_problem(ex, app),)
    if problems:
        printed = {"problems": [
            {"code": problem.code, "message": problem.message, "hint": problem.hint,
             "place": None if problem.place is None else _place(problem.place)}
            for problem in problems
        ]}
    printed["files"] = _own_files(Path(app))
    try:
        text = json.dumps(printed, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError) as ex:
        text = json.dumps({"files": printed["files"], "problems": [{
            "code": "MANIFEST_PARSE_ERROR", "message": f"a value has no form in JSON: {ex}",
            "hint": None, "place": None,
        }]})
    with os.fdopen(out, "wb") as stream:
        stream.write(text.encode(errors="backslashreplace"))


def _import_app(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(MODULE_NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError("the name of a Python file ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE_NAME] = module
    sys.path.insert(0, str(path.resolve().parent))
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)


def _import_problem(error: Exception, app: str) -> Problem:
    """Return the problem of a failed import, at the last place in a file of the app."""
    message = f"{type(error).__name__}: {error}"
    hint = None
    own = {os.path.realpath(file) for file in (*_own_files(Path(app)), app)}
    if isinstance(error, SyntaxError) and error.filename:
        at = Place(error.filename, error.lineno or 1, error.offset or 1)
        return Problem("MANIFEST_PARSE_ERROR", f"{type(error).__name__}: {error.msg}", at)
    names = set(vars(builtins))
    place: Place | None = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if os.path.realpath(frame.f_code.co_filename) in own:
            names |= frame.f_globals.keys() | frame.f_locals.keys()
    frames = traceback.extract_tb(error.__traceback__)
    for summary in reversed(frames):
        if os.path.realpath(summary.filename) in own:
            column = (summary.colno or 0) + 1
            place = Place(summary.filename, summary.lineno or 1, column)
            break
    if isinstance(error, NameError) and error.name:
        hint = name_hint(error.name, names | _pylon_names())
    elif isinstance(error, ImportError) and error.name == "pylon" and "'" in str(error):
        hint = name_hint(str(error).split("'")[1], _pylon_names())
    return Problem("MANIFEST_PARSE_ERROR", message, place, hint)


def _pylon_names() -> set[str]:
    import pylon

    return set(pylon.__all__)


def _own_files(app: Path) -> list[str]:
    """Return the files of modules that were imported from the app's folder."""
    folder = app.resolve().parent
    found = {str(app)}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and file.endswith(".py") and "site-packages" not in file:
            path = Path(file)
            if path != app and path.is_relative_to(folder):
                found.add(str(path))
    return sorted(found)


def _place(place: Place) -> list[Any]:
    base: list[Any] = [place.file, place.line, place.column]
    return [*base, place.runs] if place.runs else base
