"""Keys: the CURVE key pair of a node, made at each start.

The supervisor makes it and publishes the public half in the registry. Its workers read both halves
from a file in the runtime folder, which only their user can enter. The secret half never leaves the
machine, and dies with the run.

Invariant: a key is 40 characters of Z85, which stand for 32 bytes. Called by `supervisor.main`, and
by the workers through `pylon.cluster.links`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

import zmq

_KEY: Final = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_MODE: Final = 0o600


class KeyPair(NamedTuple):
    """Both halves, in Z85."""

    public: str
    secret: str


def has_curve() -> bool:
    """Return whether this build of ZeroMQ can encrypt."""
    return bool(zmq.has("curve"))


def make_key_pair() -> KeyPair:
    """Return a new random pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def is_key(text: str) -> bool:
    """Return whether a text has the form of a key."""
    return _KEY.fullmatch(text) is not None


def save_key_pair(path: Path, pair: KeyPair) -> None:
    """Write a pair to a file that only its owner can read.

    Raises:
        OSError
    """
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    with os.fdopen(fd, "w") as file:
        file.write(f"{pair.public}\n{pair.secret}\n")


def load_key_pair(path: Path) -> KeyPair | None:
    """Return the pair of a file; None if there is none.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        lines = path.read_text().split()
    except FileNotFoundError:
        return None
    if len(lines) != 2 or not all(map(is_key, lines)):
        raise ValueError(f"{path} holds no key pair")
    return KeyPair(*lines)
