"""`pylonctl client install DIR`: writes the JavaScript client into a folder, without a server.

The files are those of `GET /client/`: modules that a page imports, and their types. Files with
equal content stay as they are; other files of the folder are not touched.
"""

from __future__ import annotations

from pathlib import Path

import click

from pylon.cli.output import json_flag, result
from pylon.clientjs import PACKAGE, client_digest, client_files, client_package

_MODE = 0o644
_FOLDER_MODE = 0o755


@click.group()
@json_flag
def client() -> None:
    """The JavaScript client that this server serves at /client/."""


@client.command("install")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--package", is_flag=True, help="Write the package for npm instead of its files.")
@json_flag
def install(folder: Path, package: bool) -> None:
    """Write the client's files into FOLDER."""
    files = {PACKAGE: client_package()} if package else client_files()
    changed = 0
    for path, content in files.items():
        place = folder / path
        place.parent.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
        if not place.is_file() or place.read_bytes() != content:
            place.write_bytes(content)
            place.chmod(_MODE)
            changed += 1
    result(
        {"folder": str(folder), "files": len(files), "changed": changed, "digest": client_digest()},
        f"{folder}: {len(files)} files of the client, {changed} of them new or changed",
    )
