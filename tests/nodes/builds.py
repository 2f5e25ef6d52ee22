"""Builds of Pylon: this one, and an earlier one from the history of the repository."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
SHIPPED = "2952596"  # the last commit that was shipped without a tag


def earlier_build(folder: Path) -> tuple[str, Path] | None:
    """Unpack the build of the last tag, or of `SHIPPED`; its name and folder. None: this copy has
    no history of it."""
    tag = _git("describe", "--tags", "--abbrev=0")
    name = tag.stdout.decode().strip() if tag.returncode == 0 else SHIPPED
    packed = _git("archive", "--format=tar", name, "pylon", "supervisor", "workers")
    if packed.returncode != 0:
        return None
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return name, folder


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=HERE, capture_output=True, check=False, timeout=60,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(arguments, 127, b"", b"")
