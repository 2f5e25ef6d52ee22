"""The template process with stand-ins as workers: `python -m tests.support.stand_in_template`."""

from __future__ import annotations

from workers import template  # isort: skip  (it patches the standard library)

import sys

from tests.support import stand_in_worker

template._LATE_MODULES, template.ROLES = (), ()  # type: ignore[misc]  # stand-ins need none of it
template.main(lambda _role: sys.exit(stand_in_worker.main()))
