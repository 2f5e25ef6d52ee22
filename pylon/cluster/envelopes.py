"""Envelopes: the messages of links and ports, and the parcels in which they travel.

An *envelope* is a kind, the ids that it is for, and a body. All envelopes of one turn of the event
loop leave in one *parcel*. The frame of a shard for many clients of one node is one envelope with
the ids of all their tunnels.

Nodes of two versions work together during an upgrade. So a receiver drops parcels of another
version, and envelopes of a kind that it does not know. New fields of a struct stand at its end and
have defaults. A kind never changes its meaning.

Parcels of one sender have ascending numbers, from 1. A gap means that ZeroMQ has lost some: the
receiver then ends the link, because the bytes of its tunnels would not fit together.

Called by `links` and `port`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pylon.errors import PylonError
from pylon.errors.wire import WireError

VERSION: Final = 1

# Kinds. A body is empty where none is named.
BEAT: Final = 0  # each way, once in limits.CLUSTER_BEAT_S
RESET: Final = 1  # of a port that does not know this link, or has lost parcels of it
OPEN: Final = 2  # of a link: a tunnel; OpenTunnel
DATA: Final = 3  # bytes of one tunnel, or of several
END: Final = 4  # nothing more comes through a tunnel; WireError if the port refuses it
TAKEN: Final = 5  # of a port: so many bytes of a tunnel were read; a number
CALL: Final = 6  # of a link: a command
ANSWER: Final = 7  # of a port; CallAnswer
BYE: Final = 8  # of a link that its process closes


class Envelope(msgspec.Struct, array_like=True, gc=False):
    """One message. `ids` are of tunnels or of a call; the link chooses them."""

    kind: int
    ids: list[int]
    body: bytes = b""


class Parcel(msgspec.Struct, frozen=True, array_like=True):
    """The envelopes of one turn."""

    version: int
    session: str  # another one for each link, and for each link that a port knows
    number: int
    envelopes: list[Envelope]


class OpenTunnel(msgspec.Struct, frozen=True, array_like=True):
    """A client's connection that a node passes on. The owner of the shard judges it."""

    peer: str  # the network address that the connection came from
    on_main_port: bool  # an HTTP worker accepted it
    data: bytes  # the head of the request, and the bytes that arrived behind it


class CallAnswer(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a command."""

    body: bytes = b""
    error: WireError | None = None


encode: Final = msgspec.msgpack.Encoder().encode
_decode_parcel: Final = msgspec.msgpack.Decoder(Parcel).decode
_decode_version: Final = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
decode_open: Final = msgspec.msgpack.Decoder(OpenTunnel).decode
decode_answer: Final = msgspec.msgpack.Decoder(CallAnswer).decode
decode_number: Final = msgspec.msgpack.Decoder(int).decode
_decode_error: Final = msgspec.msgpack.Decoder(WireError).decode


def decode_parcel(data: bytes) -> Parcel | None:
    """Return a parcel; None if it is of another version, or unreadable."""
    try:
        parcel = _decode_parcel(data)
    except msgspec.MsgspecError:
        return None
    return parcel if parcel.version == VERSION else None


def encode_error(error: PylonError | None) -> bytes:
    """Return the body of an END."""
    return b"" if error is None else encode(WireError.from_error(error))


def decode_error(body: bytes) -> PylonError | None:
    """Return the error in the body of an END, if there is one.

    Raises:
        msgspec.MsgspecError
    """
    return _decode_error(body).to_exception() if body else None
