"""Sealed files: single files of a continuous backup, encrypted in the format of age.

`age -d -i identity.txt FILE` opens one without Pylon. Called by `supervisor.shipper` and by
restores.
"""

from __future__ import annotations

from pathlib import Path

from pylon.errors import BackupInvalid
from pylon.storage.bundle.encrypted import Encryption


def seal_file(source: Path, target: Path, recipients: tuple[str, ...]) -> None:
    """Write `source`, encrypted for age recipients, to `target`.

    Raises:
        BackupRefused: a recipient is none.
        OSError
    """
    import pyrage

    Encryption(recipients=recipients).check()
    keys = [pyrage.x25519.Recipient.from_str(text) for text in recipients]
    target.write_bytes(pyrage.encrypt(source.read_bytes(), keys))


def open_sealed(data: bytes, identities: tuple[str, ...], name: str) -> bytes:
    """Return the bytes in clear.

    Raises:
        BackupInvalid: no identity opens it, or it was changed.
    """
    import pyrage

    try:
        keys = [pyrage.x25519.Identity.from_str(text) for text in identities]
        opened: bytes = pyrage.decrypt(data, keys)
    except (pyrage.DecryptError, pyrage.IdentityError, ValueError) as ex:
        raise BackupInvalid(f"{name} cannot be decrypted: {ex}") from None
    return opened
