"""Readiness: whether this server should get requests, and if not, why (design.md §8).

The server is ready if the store can be read, the supervisor has reported within REPORT_FRESH_S,
the database can be written, each role that the node needs has as many ready workers as it should,
and no drain is in progress. With a database that several nodes share, the changes of all nodes must
reach this one. The supervisor reports every two seconds over the signals channel; the worker hands
each report to `Readiness.report`.

Called by `pylon.api.admin.system` and by the HTTP worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from pylon.bus.messages import RolesReport
from pylon.clock import Clock
from pylon.errors import PylonError

REPORT_FRESH_S: Final = 5.0


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of all checks; /readyz shows `checks`."""

    ready: bool
    checks: dict[str, Any]


class Readiness:
    """The state of the server, as last reported to this process."""

    __slots__ = ("_clock", "_probe", "_report", "_reported_s")

    def __init__(self, probe: Callable[[], object], clock: Clock) -> None:
        """
        Args:
            probe: reads something small from the store; raises a `PylonError` if it cannot.
        """
        self._probe = probe
        self._clock = clock
        self._report: RolesReport | None = None
        self._reported_s = 0.0

    def report(self, report: RolesReport) -> None:
        """Keep the newest report of the supervisor."""
        self._report = report
        self._reported_s = self._clock.monotonic_s()

    @property
    def is_draining(self) -> bool:
        """Return whether the whole server is ending, by the newest report."""
        return self._report is not None and self._report.draining

    def store_problem(self) -> str | None:
        """Return why the store cannot be read, or None."""
        try:
            self._probe()
        except PylonError as ex:
            return ex.message
        return None

    def verdict(self) -> Verdict:
        """Run all checks."""
        problem = self.store_problem()
        checks: dict[str, Any] = {"store": _check(problem is None, problem)}
        report = self._report
        age_s = self._clock.monotonic_s() - self._reported_s
        if report is None:
            checks["supervisor"] = _check(False, "no report from the supervisor yet")
        else:
            fresh = age_s < REPORT_FRESH_S
            checks["supervisor"] = _check(
                fresh, None if fresh else f"last report {age_s:.0f} s ago"
            )
            checks["draining"] = _check(
                not report.draining, "the server is stopping" if report.draining else None
            )
            problem = report.store_problem
            checks["writes"] = _check(problem is None, problem)
            for name, problem in report.checks.items():
                checks[name] = _check(problem is None, problem)
            if report.schema_pending:
                checks["schema"] = {"ok": True, "pending": report.schema_pending}
            for role, state in sorted(report.roles.items()):
                enough = state.ready >= state.wanted
                checks[f"role.{role}"] = _check(
                    enough or not state.is_needed,
                    None if enough else f"{state.ready} of {state.wanted} workers ready",
                )
        return Verdict(all(check["ok"] for check in checks.values()), checks)


def _check(ok: bool, problem: str | None) -> dict[str, Any]:
    return {"ok": ok} if problem is None else {"ok": ok, "problem": problem}
