"""Devices: a short label for the user agent that a session was made with (spec/http.md §4.2).

The label is for people who look through their sessions ("Chrome on macOS"). It is a guess
from the User-Agent header and nothing is decided by it. The header itself is not stored.
"""

from __future__ import annotations

from typing import Final

# In this order: a browser's user agent names its ancestors too (Edge says Chrome and Safari).
_BROWSERS: Final = (
    ("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("FxiOS", "Firefox"),
    ("CriOS", "Chrome"), ("Chrome/", "Chrome"), ("Safari/", "Safari"), ("curl/", "curl"),
)
_SYSTEMS: Final = (
    ("iPhone", "iOS"), ("iPad", "iPadOS"), ("Android", "Android"), ("Windows", "Windows"),
    ("Mac OS X", "macOS"), ("CrOS", "ChromeOS"), ("Linux", "Linux"),
)
_UNKNOWN: Final = "Unknown device"


def device_label(user_agent: str | None) -> str:
    """The label of a User-Agent header, for example ``Chrome on macOS``."""
    if not user_agent:
        return _UNKNOWN
    browser = next((label for mark, label in _BROWSERS if mark in user_agent), None)
    system = next((label for mark, label in _SYSTEMS if mark in user_agent), None)
    if browser and system:
        return f"{browser} on {system}"
    return browser or system or _UNKNOWN
