"""Disk errors: describes an OSError about a file with the path, the reason and the remedy.

`str(OSError)` is "[Errno 28] No space left on device", without the path if the call had only a
descriptor. Called where a start or stop may meet a full, read-only or broken disk.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from pylon.errors import StartDelayed, StartRefused

_REMEDIES: Final = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "raise the quota, or free space",
    errno.EROFS: "mount its file system read-write",
    errno.EACCES: "give it back its owner and mode",
    errno.EPERM: "give it back its owner and mode",
    errno.EIO: "its disk fails: see the kernel's log",
    errno.ENOENT: "make it again, or set the path to where it is",
}
# Errors that may end without a change of the configuration.
_PASSING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


def describe_os_error(error: OSError, path: str | Path | None = None) -> str:
    """Return the description.

    Args:
        path: the file of the call; used if the error does not name one.
    """
    named = error.filename if error.filename is not None else path
    where = "" if named is None else f"{named}: "
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{where}{error.strerror or error}" + ("" if remedy is None else f" ({remedy})")


def start_error(
    error: OSError, path: str | Path | None = None, what: str | None = None
) -> StartRefused:
    """Return the error of a start that `error` has ended.

    Args:
        what: the failed step, as the beginning of the text.

    Returns: `StartDelayed` if a later start may succeed without a change of the configuration.
    """
    kind = StartDelayed if error.errno in _PASSING else StartRefused
    text = describe_os_error(error, path)
    return kind(text if what is None else f"{what}: {text}")
