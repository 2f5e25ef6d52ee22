"""Handshake filter: a listening socket that takes no new connection, and completes those begun.

The kernel resets the connections that wait in the backlog of a listener when the listener closes.
Its clients have connected by then, and may have sent their request. So before the last close, a
filter of the kernel (socket(7), SO_ATTACH_FILTER) drops the first packet of each new TCP
connection. The backlog then only shrinks, and workers accept what is in it. A client whose packet
was dropped sends it again after a second. By then nobody listens, or the next server does.

All descriptors of one listener share the filter, those in other processes too. Called by
`supervisor.sockets`.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Final

_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h; Python's socket module does not name it
_FLAGS_AT: Final = 13  # RFC 9293 §3.1: the byte with the flags in the TCP header
_SYN: Final = 0x02
_ACK: Final = 0x10
# linux/filter.h: code, jumps when true and when false, operand. The data begin with the TCP header.
_PROGRAM: Final = (
    (0x30, 0, 0, _FLAGS_AT),  # load the byte with the flags
    (0x45, 1, 0, _ACK),  # an acknowledgement belongs to a handshake that has begun: pass it
    (0x45, 1, 0, _SYN),  # a new connection: drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
    (0x06, 0, 0, 0),  # drop
)


def refuse_handshakes(listener: socket.socket) -> bool:
    """Let a listening TCP socket drop the first packet of each new connection from now on.

    Returns:
        False if the kernel or a sandbox does not allow such a filter; then nothing has changed.
    """
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _PROGRAM)
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HL", len(_PROGRAM), ctypes.addressof(code))  # struct sock_fprog
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, header)
    except OSError:
        return False
    return True
