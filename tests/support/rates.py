"""Rates for tests of parts that count something by the app's rates."""

from __future__ import annotations

from typing import Final

from pylon.app_rates import AppRates
from pylon.clock import ManualClock
from pylon.limiter import RateLimiter, RateTable

NO_RATES: Final = AppRates((), RateLimiter(RateTable(), ManualClock()))
