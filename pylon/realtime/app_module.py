"""The app's own Python: one file, named by `PYLON_APP`, that registers its shards.

Only the shards workers and `pylonctl replay` load it, so what it imports costs the others
nothing. Its folder comes first on `sys.path`, so that it may import its neighbours.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Final

from pylon.errors import StartRefused
from pylon.imports import give_back

_NAME: Final = "pylon_app"


def load_app_module(path: Path) -> None:
    """Import the file, once.

    Raises:
        StartRefused: it is not there, or its import fails; the message has the line.
    """
    if _NAME in sys.modules:
        return
    if not path.is_file():
        raise StartRefused(
            f"PYLON_APP is {path}, which is no file", hint="Name the app's Python file"
        )
    give_back()
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise StartRefused(f"PYLON_APP is {path}: the name of a Python file ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except StartRefused:
        del sys.modules[_NAME]
        raise
    except Exception as ex:
        del sys.modules[_NAME]
        raise StartRefused(f"PYLON_APP is {path}: {_where(ex, path)}{_said(ex)}") from ex


def _where(error: Exception, path: Path) -> str:
    """The last line of the app's file that took part."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"line {error.lineno}: "
    return f"line {frames[-1].lineno}: " if frames else ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
