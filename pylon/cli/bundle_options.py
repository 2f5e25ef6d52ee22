"""Options of encrypted bundles: who may open one, for `pylonctl backup` and `pylonctl restore`.

Invariant: a passphrase comes from a file or a terminal, never from the command line, where every
user of the machine could read it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from pylon.errors import BackupRefused
from pylon.storage.bundle.encrypted import (
    Decryption,
    Encryption,
    is_encrypted,
    make_workspace,
    needs_passphrase,
    open_encrypted,
    read_identities,
)

_PASSPHRASE_BYTES: Final = 4_096
_PASSPHRASE_HELP: Final = "A file whose first line is the passphrase; without it you are asked."

F = TypeVar("F", bound=Callable[..., Any])


def opening_options(command: F) -> F:
    """Add the options that open an encrypted bundle."""
    passphrase = click.option(
        "--passphrase-file", type=click.Path(path_type=Path), help=_PASSPHRASE_HELP
    )
    identity = click.option(
        "--identity", type=click.Path(path_type=Path),
        help="A file with the age identity of a recipient.",
    )
    return passphrase(identity(command))


def read_encryption(
    *, encrypt: bool, recipients: tuple[str, ...], passphrase_file: Path | None
) -> Encryption | None:
    """Return how to encrypt a bundle; None: not at all.

    Raises:
        BackupRefused: there is no passphrase, or a recipient is none.
    """
    if not encrypt and not recipients and passphrase_file is None:
        return None
    passphrase = None
    if passphrase_file is not None or not recipients:
        passphrase = _read_passphrase(passphrase_file, is_new=True)
    encryption = Encryption(passphrase, recipients)
    encryption.check()
    return encryption


def read_decryption(
    source: Path, *, passphrase_file: Path | None, identity: Path | None
) -> Decryption:
    """Return what opens the encrypted bundle.

    Raises:
        BackupRefused: it is not given.
    """
    if identity is not None:
        return Decryption(identities=read_identities(identity))
    if not needs_passphrase(source):
        raise BackupRefused(
            f"{source} was encrypted for age recipients: give an identity file (--identity)"
        )
    return Decryption(_read_passphrase(passphrase_file, is_new=False))


@contextmanager
def open_bundle(
    source: Path, data_dir: Path | None, passphrase_file: Path | None, identity: Path | None
) -> Iterator[Path]:
    """Give the bundle in clear: `source` itself, or a copy that is removed after the block.

    Args:
        data_dir: where the copy may be; None: in the system's folder for temporary files.

    Raises:
        BackupRefused: what opens it is not given. BackupInvalid: it does not open.
    """
    if not is_encrypted(source):
        if passphrase_file is not None or identity is not None:
            raise BackupRefused(f"{source} is no encrypted bundle: leave the option out")
        yield source
        return
    decryption = read_decryption(source, passphrase_file=passphrase_file, identity=identity)
    with make_workspace(data_dir) as plain:
        open_encrypted(source, decryption, plain)
        yield plain


def _read_passphrase(path: Path | None, *, is_new: bool) -> str:
    if path is not None:
        try:
            with path.open("rb") as file:
                text = file.read(_PASSPHRASE_BYTES).decode()
        except (OSError, UnicodeDecodeError) as ex:
            raise BackupRefused(f"the passphrase in {path} cannot be read: {ex}") from None
        passphrase = text.splitlines()[0] if text else ""
        if not passphrase:
            raise BackupRefused(f"the first line of {path} is empty: it is the passphrase")
        return passphrase
    if sys.stdin is None or not sys.stdin.isatty():
        raise BackupRefused(
            "stdin is no terminal to ask for the passphrase: give a file (--passphrase-file)"
        )
    typed: str = click.prompt(
        "Passphrase of the bundle", hide_input=True, confirmation_prompt=is_new, err=True
    )
    return typed
