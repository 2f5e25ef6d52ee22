"""Device labels: a short name for the user agent of a new session (spec/http.md §4.2).

People see the label ("Chrome on macOS") in the list of their sessions. The label is a guess from
the User-Agent header, and nothing depends on it. The store does not keep the header. Called by the
API.
"""

from __future__ import annotations

from typing import Final

# In this order: a browser's user agent names its ancestors too (Edge says Chrome and Safari).
_BROWSERS: Final = (
    ("Edg", "Edge"), ("OPR/", "Opera"), ("Firefox/", "Firefox"), ("FxiOS", "Firefox"),
    ("CriOS", "Chrome"), ("Chrome/", "Chrome"), ("Safari/", "Safari"),
)
_SYSTEMS: Final = (
    ("iPhone", "iOS"), ("iPad", "iPadOS"), ("Android", "Android"), ("Windows", "Windows"),
    ("Mac OS X", "macOS"), ("CrOS", "ChromeOS"), ("Linux", "Linux"),
)


def device_label(user_agent: str | None) -> str:
    """Return the label of a User-Agent header, for example ``Chrome on macOS``; "" if it names
    neither a browser nor a system."""
    if not user_agent:
        return ""
    browser = next((label for mark, label in _BROWSERS if mark in user_agent), None)
    system = next((label for mark, label in _SYSTEMS if mark in user_agent), None)
    if browser and system:
        return f"{browser} on {system}"
    return browser or system or ""
