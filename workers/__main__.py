"""`python -m workers ROLE`: one worker as a process of its own, for tests and for profilers.

A server forks its workers from `workers.template`. This module runs the same code without a fork;
the environment (`pylon.bus.child`) says who the worker is. Called by `tests` and `bench`.
"""

# ruff: noqa: E402  (gevent patches the standard library before any other import)
from __future__ import annotations

from pylon.runtime.gevent_patch import patch

patch()

import sys

from workers.template import import_all, run_role

import_all()
run_role(sys.argv[1])
