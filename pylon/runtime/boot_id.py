"""The id of this boot of the machine: whether another run was before or after its last start.

Called by the store, for losses of power, and by the supervisor, for times of the monotonic clock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def read_boot_id() -> str:
    """Return the id; empty where the kernel does not say."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
