"""What a figure was measured on. Figures of two machines are not compared."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from pylon.storage.factory import open_store_at


def fingerprint() -> dict[str, str | int]:
    """Processor, cores, kernel, Python and SQLite."""
    return {
        "cpu": _cpu_model(), "cores": os.cpu_count() or 0, "kernel": platform.release(),
        "python": platform.python_version(), "sqlite": open_store_at(Path("app.db")).engine_version,
    }


def text(machine: dict[str, str | int]) -> str:
    """The fingerprint in a line."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}, SQLite {machine['sqlite']}"
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    return platform.machine()
