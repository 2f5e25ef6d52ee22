"""The JavaScript client as it is served: its files, hashes and package, made in memory.

`web/client` has the source; `make web` builds the files beside this module, and they are committed.
The version of the package is that of the server. The package is a tar file in a gzip container
without compression, so that every zlib makes the same bytes: a lock file pins their hash.

Called by `pylon.api.client_files` and `pylonctl client`.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pylon import __version__

PACKAGE: Final = "pylon-client.tgz"
_FOLDER: Final = Path(__file__).parent
_SUFFIXES: Final = (".js", ".d.ts", ".json")
_GZIP_HEAD: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # no name, no time, any system
_DIGEST_CHARS: Final = 16


@functools.cache
def client_files() -> Mapping[str, bytes]:
    """Return the files of the client by their paths, sorted."""
    found = {
        path.relative_to(_FOLDER).as_posix(): path.read_bytes()
        for path in sorted(_FOLDER.rglob("*"))
        if path.is_file() and path.name.endswith(_SUFFIXES)
    }
    package = json.loads(found["package.json"])
    found["package.json"] = json.dumps({**package, "version": __version__}, indent=2).encode()
    return MappingProxyType(found)


@functools.cache
def client_digest() -> str:
    """Return the digest of all files: the segment of the addresses that never change."""
    digest = hashlib.sha256()
    for path, content in client_files().items():
        digest.update(b"%b\n%d\n%b" % (path.encode(), len(content), content))
    return digest.hexdigest()[:_DIGEST_CHARS]


@functools.cache
def client_package() -> bytes:
    """Return the package that npm installs: the same bytes for the same files, everywhere."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, content in client_files().items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    plain = held.getvalue()
    stored = zlib.compressobj(0, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join((
        _GZIP_HEAD, stored.compress(plain), stored.flush(),
        struct.pack("<II", zlib.crc32(plain), len(plain) & 0xFFFFFFFF),
    ))
