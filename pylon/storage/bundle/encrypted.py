"""Encrypted bundles: a bundle as one file that only its owner can open, in the format of age.

An encrypted bundle is a folder too:

    bundle.tar.age  the files of the bundle as a tar archive, encrypted
    key.age         with a passphrase: the key of bundle.tar.age, encrypted by the passphrase

So `age -d -i key.age bundle.tar.age | tar -x` opens it without Pylon, or `age -d -i identity.txt`
where it was encrypted for recipients. The bundle in clear lies in the data directory meanwhile,
where the data lie in clear anyway (`make_workspace`); the target never holds it.

Invariants: the target appears complete or not at all (temporary name, fsync, rename). Files are
streamed: memory does not grow with the database. The archive is checked to its last byte before the
folder in clear is used. Called by `pylonctl backup` and `pylonctl restore`.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import RawIOBase
from pathlib import Path
from typing import Any, Final

from pylon.clock import SystemRandom
from pylon.data_dir import sync_path
from pylon.errors import BackupInvalid, BackupRefused
from pylon.private_folders import collect_dead_folders, make_private_folder, remove_private_folder
from pylon.storage.backups import BackupReport
from pylon.storage.bundle.create import check_target

ARCHIVE: Final = "bundle.tar.age"
KEY: Final = "key.age"
MIN_PASSPHRASE_CHARS: Final = 12
_FORMAT: Final = b"age-encryption.org/v1\n"
_PREFIX: Final = "pylon-bundle-"
_PLAIN: Final = "bundle"
# The folder in clear, also one whose copy was interrupted.
_PATTERNS: Final = (f"{_PLAIN}/*", f"{_PLAIN}.tmp-*/*", f"{_PLAIN}*")
_BLOCK_BYTES: Final = 512
_CHUNK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Encryption:
    """The readers of a bundle: the holder of a passphrase, or the age identities of recipients."""

    passphrase: str | None = field(default=None, repr=False)
    recipients: tuple[str, ...] = ()

    def check(self) -> None:
        """Check both.

        Raises:
            BackupRefused: the passphrase is too short, or a recipient is none.
        """
        if self.passphrase is not None and len(self.passphrase) < MIN_PASSPHRASE_CHARS:
            raise BackupRefused(
                f"the passphrase has {len(self.passphrase)} characters: use at least "
                f"{MIN_PASSPHRASE_CHARS} (for example: openssl rand -base64 24)"
            )
        for text in self.recipients:
            _recipient(text)


@dataclass(frozen=True, slots=True)
class Decryption:
    """The key of a bundle: the passphrase, or the texts of age identities."""

    passphrase: str | None = field(default=None, repr=False)
    identities: tuple[str, ...] = field(default=(), repr=False)


def is_encrypted(source: Path) -> bool:
    """Whether a folder is an encrypted bundle."""
    return (source / ARCHIVE).is_file()


def needs_passphrase(source: Path) -> bool:
    """Whether a passphrase opens the encrypted bundle."""
    return (source / KEY).is_file()


@contextmanager
def make_workspace(data_dir: Path | None) -> Iterator[Path]:
    """Make a private folder for a bundle in clear, and remove it at the end of the block. The next
    one removes those of killed processes.

    Args:
        data_dir: where to make it, if it can be written to; else where temporary files are.

    Raises:
        OSError: the disk refused.
    """
    parent = data_dir if data_dir is not None and os.access(data_dir, os.W_OK) else None
    collect_dead_folders(_PREFIX, _PATTERNS, parent)
    folder = make_private_folder(_PREFIX, parent)
    try:
        yield folder / _PLAIN
    finally:
        remove_private_folder(folder, _PATTERNS)


def create_encrypted(
    target: Path, encryption: Encryption, plain: Path, create: Callable[[Path], BackupReport]
) -> BackupReport:
    """Write an encrypted bundle to the folder `target`, which must be missing or empty.

    Args:
        plain: a path in a workspace.
        create: makes the bundle in clear at a path.

    Raises:
        BackupRefused: the target exists and is not empty, or nobody could open the bundle.
        OSError: the disk refused; nothing half made stays.
    """
    import pyrage

    encryption.check()
    target = target.absolute()
    check_target(target)
    report = create(plain)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f"{target.name}.tmp-{SystemRandom().token_hex(4)}")
    folder.mkdir(mode=0o700)
    try:
        recipients = [_recipient(text) for text in encryption.recipients]
        if encryption.passphrase is not None:
            identity = pyrage.x25519.Identity.generate()
            recipients.append(identity.to_public())
            sealed = pyrage.passphrase.encrypt(f"{identity}\n".encode(), encryption.passphrase)
            (folder / KEY).write_bytes(sealed)
        with (folder / ARCHIVE).open("wb") as file:
            reader = _Packing(plain)
            pyrage.encrypt_io(reader, file, recipients)
        if not reader.is_done:
            raise BackupInvalid(f"{plain} was not read to its end")
        for path in folder.iterdir():
            path.chmod(0o600)
            sync_path(path)
        sync_path(folder)
        size_bytes = sum(path.stat().st_size for path in folder.iterdir())
        try:
            folder.rename(target)
        except OSError as ex:
            raise BackupRefused(f"{target} came into being meanwhile: {ex.strerror}") from None
        sync_path(target.parent)
    except BaseException:  # Ctrl-C too must leave no partial bundle behind
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return replace(report, target=str(target), size_bytes=size_bytes, encrypted=True)


def open_encrypted(source: Path, decryption: Decryption, plain: Path) -> None:
    """Decrypt a bundle into the folder `plain`, which must be missing.

    Args:
        plain: a path in a workspace.

    Raises:
        BackupInvalid: the passphrase or the identities do not open it, or it was changed.
        OSError: the disk refused.
    """
    import pyrage

    identities = _identities(source, decryption)
    plain.mkdir(mode=0o700)
    writer = _Unpacking(plain)
    try:
        with (source / ARCHIVE).open("rb") as file:
            pyrage.decrypt_io(file, writer, identities)
    except (pyrage.DecryptError, OSError, ValueError) as ex:
        if writer.failure is not None:
            raise writer.failure from None
        if isinstance(ex, OSError) and ex.errno is not None:
            raise
        raise BackupInvalid(f"{source / ARCHIVE} cannot be decrypted: {ex}") from None
    finally:
        writer.close()
    if not writer.is_done:
        raise BackupInvalid(f"{source / ARCHIVE} ends early")


def read_identities(path: Path) -> tuple[str, ...]:
    """Return the identities of an age key file.

    Raises:
        BackupRefused: it cannot be read, or has none.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as ex:
        raise BackupRefused(f"the identity file {path} cannot be read: {ex}") from None
    found = tuple(line for line in lines if line.startswith("AGE-SECRET-KEY-1"))
    if not found:
        raise BackupRefused(f"{path} has no line with AGE-SECRET-KEY-1: age-keygen makes one")
    return found


def _recipient(text: str) -> Any:
    import pyrage

    try:
        return pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        hint = ""
        if text.upper().startswith("AGE-SECRET-KEY"):
            text, hint = "that", " (it is a secret key: make a new one, and give its public key)"
        raise BackupRefused(
            f"{text} is no age recipient: expected age1…, as age-keygen prints it{hint}"
        ) from None


def _identities(source: Path, decryption: Decryption) -> list[Any]:
    """Raises BackupInvalid, BackupRefused."""
    import pyrage

    texts = decryption.identities
    if not texts and decryption.passphrase is not None:
        if not needs_passphrase(source):
            raise BackupRefused(
                f"{source} was encrypted for age recipients: give an identity file (--identity)"
            )
        try:
            opened = pyrage.passphrase.decrypt(
                (source / KEY).read_bytes(), decryption.passphrase
            )
        except pyrage.DecryptError:
            raise BackupInvalid(
                f"the passphrase does not open {source / KEY}, or the file was changed"
            ) from None
        texts = (opened.decode("ascii", "replace").strip(),)
    try:
        return [pyrage.x25519.Identity.from_str(text) for text in texts]
    except pyrage.IdentityError:
        raise BackupInvalid("an identity is no age identity (AGE-SECRET-KEY-1…)") from None


class _Packing(RawIOBase):
    """The files of a folder as a tar archive, to be read once."""

    def __init__(self, folder: Path) -> None:
        self.is_done = False
        self._chunks = self._pack(folder)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        cut = len(self._rest) if size < 0 else size
        found, self._rest = self._rest[:cut], self._rest[cut:]
        return bytes(found)

    def _pack(self, folder: Path) -> Iterator[bytes]:
        for path in sorted(folder.iterdir()):
            size_bytes = path.stat().st_size
            info = tarfile.TarInfo(path.name)
            info.size, info.mode = size_bytes, 0o600
            yield info.tobuf(tarfile.GNU_FORMAT)
            left = size_bytes
            with path.open("rb") as file:
                while chunk := file.read(min(_CHUNK_BYTES, left)):
                    left -= len(chunk)
                    yield chunk
            if left:
                raise BackupInvalid(f"{path} became shorter")
            if padding := -size_bytes % _BLOCK_BYTES:
                yield bytes(padding)
        yield bytes(2 * _BLOCK_BYTES)
        self.is_done = True


class _Unpacking(RawIOBase):
    """Takes the bytes of such an archive in pieces, and writes its files into a folder."""

    def __init__(self, folder: Path) -> None:
        self.failure: BackupInvalid | OSError | None = None
        self.is_done = False
        self._folder = folder
        self._head = b""
        self._file: Any = None
        self._left = self._padding = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        try:
            self._take(memoryview(data))
        except (BackupInvalid, OSError) as ex:  # pyrage would make it a text
            self.failure = ex
            raise
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def _take(self, data: memoryview) -> None:
        while data:
            if self._left:
                piece = data[:self._left]
                self._file.write(piece)
                self._left -= len(piece)
                data = data[len(piece):]
            elif self._padding:
                count = min(self._padding, len(data))
                self._padding -= count
                data = data[count:]
            else:
                count = _BLOCK_BYTES - len(self._head)
                self._head += bytes(data[:count])
                data = data[count:]
                if len(self._head) == _BLOCK_BYTES:
                    head, self._head = self._head, b""
                    self._begin(head)

    def _begin(self, head: bytes) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if head == bytes(_BLOCK_BYTES):
            self.is_done = True
            return
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
        except tarfile.HeaderError as ex:
            raise BackupInvalid(f"the archive is damaged: {ex}") from None
        name = info.name
        if self.is_done or not info.isreg() or name in ("", ".", "..") or "/" in name:
            raise BackupInvalid(f"the archive has {name[:100]!r}, which is no file of a bundle")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(self._folder / name, flags, 0o600)
        self._file = os.fdopen(fd, "wb")
        self._left, self._padding = info.size, -info.size % _BLOCK_BYTES
