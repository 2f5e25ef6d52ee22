"""Runs the real supervisor over stand-in workers: `python -m tests.support.stand_in_supervisor`.

``STAND_IN=real`` has the real workers, ``probe`` those of `probe_template`. Limits are lowered by
``LIMIT_<NAME>=<number>``. Lines ``NAME=value`` of the file ``settings`` in the working directory
win over the environment, also at a reload. The exit code is the supervisor's; a refusal is printed
as one line and answers with 78, as `pylonctl start` does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pylon import limits
from pylon.config import Loaded, load
from pylon.errors import StartRefused
from supervisor import template
from supervisor.main import run


def stand_in() -> list[str]:
    module = "probe_template" if os.environ.get("STAND_IN") == "probe" else "stand_in_template"
    return [sys.executable, "-m", f"tests.support.{module}"]


def read() -> Loaded:
    path = Path("settings")
    lines = path.read_text().splitlines() if path.exists() else []
    return load({**os.environ, **dict(line.split("=", 1) for line in lines)})


def main() -> int:
    for name, value in os.environ.items():
        if name.startswith("LIMIT_"):
            limit = name.removeprefix("LIMIT_")
            getattr(limits, limit)  # a limit that was renamed must not pass unnoticed
            setattr(limits, limit, float(value))
    if os.environ.get("STAND_IN") != "real":
        template.template_command = stand_in
    try:
        return run(read(), reread=read)
    except StartRefused as ex:
        print(ex.message, file=sys.stderr)
        return 78


if __name__ == "__main__":
    sys.exit(main())
