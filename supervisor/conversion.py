"""Conversion: brings datetimes of an earlier version to the stored notation, in the background.

The flusher calls `run_round` once a second. A round converts for `_ROUND_S` at most, in steps
between the writer's transactions (`Maintenance.convert_datetimes`), and the log says the progress
every `_SAID_EVERY_S`. A killed server goes on where it was. Metrics:
pylon_datetimes_converted_total, pylon_datetimes_unconverted_entities. Called by `flusher`; `status`
is a part of `pylonctl status`.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from pylon import log, metrics
from pylon.clock import Clock
from pylon.storage.interface import Maintenance
from pylon.storage.records import ConversionStep

_log = log.get_logger("flusher")
_ROUND_S: Final = 0.25
_SAID_EVERY_S: Final = 10.0


class DatetimeConversion:
    """The conversion of one store. It has nothing to do once all entities are converted."""

    def __init__(self, maintenance: Maintenance, clock: Clock) -> None:
        self._maintenance = maintenance
        self._clock = clock
        self._said_s = float("-inf")
        self._is_done = False
        self.status: dict[str, Any] | None = None  # None: nothing is being converted

    def run_round(self, ending: threading.Event) -> None:
        """Convert for a short time.

        Args:
            ending: ends the round early.

        Raises:
            StoreUnavailable, WriterUnavailable: the next round goes on.
        """
        if self._is_done:
            return
        end_s = self._clock.monotonic_s() + _ROUND_S
        while not ending.is_set() and self._clock.monotonic_s() < end_s:
            step = self._maintenance.convert_datetimes()
            if step is None:
                self._is_done, self.status = True, None
                metrics.DATETIMES_UNCONVERTED.set(0)
                return
            self._note(step)

    def _note(self, step: ConversionStep) -> None:
        metrics.DATETIMES_CONVERTED.inc(step.rows)
        metrics.DATETIMES_UNCONVERTED.set(step.entities_left)
        self.status = {
            "entity": step.entity, "rows": step.rows_done, "entities_left": step.entities_left,
        }
        if step.is_last:
            if step.rows_left:
                _log.error(
                    "datetimes.not_converted", entity=step.entity, rows=step.rows_left,
                    hint="rows of a unique datetime have one instant in two notations: change or "
                    "remove them; until then no index over a datetime serves this entity",
                )
            if step.rows_done:
                _log.info("datetimes.converted", entity=step.entity, rows=step.rows_done)
            return
        now_s = self._clock.monotonic_s()
        if now_s - self._said_s >= _SAID_EVERY_S:
            self._said_s = now_s
            _log.info("datetimes.converting", entity=step.entity, rows=step.rows_done)
