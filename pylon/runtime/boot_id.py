"""Boot id: the kernel's id of the present boot of the machine.

If a stored boot id differs from this one, the machine has been restarted since. The store then
assumes a loss of power after an unclean stop, and the supervisor corrects stored times of the
monotonic clock. Called by the store and the supervisor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def read_boot_id() -> str:
    """Return the id; empty if the kernel does not offer it."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
