"""`pylonctl init`: makes the folder of a new app from one of the starters.

The starters are files of the package `pylon.starters`. It never replaces a file: if one of them is
there, it makes nothing. Developers call it.
"""

from __future__ import annotations

import os
import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import click

from pylon.cli.output import json_flag, result
from pylon.clock import SystemRandom
from pylon.errors import StartRefused

STARTERS: Final = ("minimal", "todo", "chat", "game")
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_ENDING: Final = ".template"
_COMMON: Final = {
    ".gitignore": ".env\n.pylon/\n__pycache__/\n",
    "tests/conftest.py": (
        '"""The server of the tests."""\n\n'
        "from pylon.testing import pylon_server as pylon_server\n"
    ),
    "README.md": """\
# __NAME__

```sh
pylonctl dev                                 # then open http://localhost:4321/app/
pytest                                       # a real server on free ports
pylonctl codegen ts --out public/types.d.ts  # types for the page
```

`app.py` declares the entities and who may do what with them, `public/` has the page, `seed.json`
the first rows. `.env` has the admin token and stays out of git.
""",
}
_ENV: Final = """\
PYLON_ADMIN_TOKEN={token}
PYLON_APP=app.py
PYLON_STATIC_DIR=public
PYLON_SEED=seed.json
"""


@click.command()
@click.argument("name")
@click.option("--template", type=click.Choice(STARTERS), default="minimal", show_default=True)
@json_flag
def init(name: str, template: str) -> None:
    """Make the folder NAME with a new app: code, page, seed, tests."""
    folder = Path(name)
    if _NAME.fullmatch(folder.name) is None:
        raise StartRefused(
            f'"{folder.name}" cannot name an app',
            hint="a letter, then up to 62 letters, digits, _ and -",
        )
    texts = {path: text.replace("__NAME__", folder.name) for path, text in _texts(template)}
    texts[".env"] = _ENV.format(token=SystemRandom().token_hex(32))
    present = sorted(path for path in texts if os.path.lexists(folder / path))
    if present:
        raise StartRefused(
            f"{folder / present[0]} is there already", hint="init replaces no file: name another "
            "folder",
        )
    for path, text in sorted(texts.items()):
        _put(folder / path, text, private=path == ".env")
    result(
        {"folder": str(folder), "template": template, "files": sorted(texts)},
        f"made {len(texts)} files in {folder}; next: cd {folder} && pylonctl dev",
    )


def _texts(template: str) -> list[tuple[str, str]]:
    """Return the files of a starter: path in the app's folder, and text."""
    found = list(_COMMON.items())
    for path, item in _walk(files("pylon.starters") / template, ""):
        target = "tests/test_app.py" if path == "test_app.py" else path
        found.append((target, item.read_text(encoding="utf-8")))
    return found


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for item in folder.iterdir():
        if item.is_dir():
            found += _walk(item, f"{prefix}{item.name}/")
        elif item.name.endswith(_ENDING):
            found.append((prefix + item.name.removesuffix(_ENDING), item))
    return found


def _put(path: Path, text: str, *, private: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            if not private:
                os.fchmod(file.fileno(), 0o644)
            file.write(text)
    except OSError as ex:
        raise StartRefused(f"{path} cannot be written: {ex.strerror or ex}") from ex
