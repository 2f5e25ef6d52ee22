"""A TCP proxy between a client and a server, which cuts, stalls, delays and blocks on command.

It listens on one port for each target, and on a control port that takes HTTP. In Python a test
makes a `FaultProxy` and calls its methods. Tests in other languages run it as a process::

    python -m tests.support.fault_proxy --target 127.0.0.1:4321 --target 127.0.0.1:4322

The process writes one line of JSON to stdout, ``{"ports": [40001, 40002], "control": 40003}``, and
ends with its stdin or on SIGTERM. The ports have the order of the targets; `--port N` (as often as
`--target`) chooses them. The control port answers JSON, and pages of any origin may ask it:

- ``GET /``: the faults, and the number of open and of accepted connections.
- ``POST /faults`` with JSON: set members of the faults; others stay as they are.
- ``POST /heal``: no faults any more; stalled bytes go on.
- ``POST /cut``: reset the open connections now; ``?kind=websocket`` only WebSockets.

The faults:

- ``refuse``: reset new connections.
- ``stall``: forward nothing, in either direction.
- ``delay_s``: each piece waits so long.
- ``block_websocket``: answer an upgrade with 403. ``hang_websocket``: never answer it.
- ``lose_answers``: forward requests, and reset the connection when the answer begins.
- ``cut_after_bytes``: reset each connection after so many bytes of the server.

Invariants: bytes keep their order. A stalled connection holds one piece of 64 KiB for each
direction, so TCP slows its sender. The proxy looks at the first piece of a connection only, to tell
a WebSocket from other requests.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_PIECE_BYTES = 64 * 1024
_LINGER_RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # close sends RST: the peer sees a cut, no end
_FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class Faults:
    """The faults that the proxy brings to connections. The defaults bring none."""

    refuse: bool = False
    stall: bool = False
    delay_s: float = 0.0
    block_websocket: bool = False
    hang_websocket: bool = False
    lose_answers: bool = False
    cut_after_bytes: int | None = None

    def set(self, given: dict[str, Any]) -> None:
        """Set members by name. Raises: KeyError: there is no fault of this name."""
        known = {each.name for each in fields(self)}
        for name, value in given.items():
            if name not in known:
                raise KeyError(f"{name} is no fault; there are {', '.join(sorted(known))}")
            setattr(self, name, value)


@dataclass(slots=True, eq=False)
class _Pair:
    """The two sides of a connection, and whether it carries a WebSocket."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    is_websocket: bool = False
    answered_bytes: int = 0

    def reset(self) -> None:
        for side in (self.client, self.server):
            if side is not None:
                raw = side.get_extra_info("socket")
                if raw is not None:
                    with contextlib.suppress(OSError):
                        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
                side.transport.abort()


@dataclass(slots=True)
class _State:
    faults: Faults = field(default_factory=Faults)
    pairs: set[_Pair] = field(default_factory=set)
    accepted: int = 0
    healed: asyncio.Event = field(default_factory=asyncio.Event)


class FaultProxy:
    """A proxy that runs in a thread of its own. A context manager; its methods are thread-safe."""

    def __init__(self, targets: Sequence[tuple[str, int]], ports: Sequence[int] = ()) -> None:
        """
        Args:
            targets: the address of the server behind each port.
            ports: where to listen, in the order of the targets; any free ports without it.
        """
        self._targets = [*targets]
        self._wanted = [*ports] or [0] * len(self._targets)
        self._loop = asyncio.new_event_loop()
        self._state = _State()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self.ports: list[int] = []
        self.control_port = 0
        self._thread.start()
        self._started.wait()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Reset what is open, and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def set(self, **faults: Any) -> None:
        """Set faults by name, as `Faults` has them."""
        self._call(lambda: self._set(faults))

    def heal(self) -> None:
        """End all faults. Connections that are open stay open."""
        self._call(self._heal)

    def cut(self, *, only_websockets: bool = False) -> None:
        """Reset the open connections."""
        self._call(lambda: self._cut(only_websockets))

    @property
    def open_connections(self) -> int:
        return len(self._state.pairs)

    @property
    def accepted_connections(self) -> int:
        return self._state.accepted

    # --- In the thread of the loop ---------------------------------------------------------

    def _call(self, action: Any) -> None:
        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._started.set()
        try:
            self._loop.run_forever()
        finally:
            for server in self._servers:
                server.close()
            self._cut(False)
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    async def _listen(self) -> None:
        for target, port in zip(self._targets, self._wanted, strict=True):
            async def serve(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                target: tuple[str, int] = target,
            ) -> None:
                with contextlib.suppress(asyncio.CancelledError):  # the proxy ends
                    await self._serve(target, reader, writer)

            server = await asyncio.start_server(serve, "127.0.0.1", port)
            self._servers.append(server)
            self.ports.append(server.sockets[0].getsockname()[1])
        control = await asyncio.start_server(self._control, "127.0.0.1", 0)
        self._servers.append(control)
        self.control_port = control.sockets[0].getsockname()[1]

    def _set(self, given: dict[str, Any]) -> None:
        self._state.faults.set(given)
        if not self._state.faults.stall:
            self._wake()

    def _heal(self) -> None:
        self._state.faults = Faults()
        self._wake()

    def _wake(self) -> None:
        healed, self._state.healed = self._state.healed, asyncio.Event()
        healed.set()

    def _cut(self, only_websockets: bool) -> None:
        for pair in list(self._state.pairs):
            if pair.is_websocket or not only_websockets:
                pair.reset()

    async def _serve(
        self, target: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        state = self._state
        state.accepted += 1
        pair = _Pair(writer)
        state.pairs.add(pair)
        try:
            if state.faults.refuse:
                return
            first = await reader.read(_PIECE_BYTES)
            pair.is_websocket = b"upgrade: websocket" in first.lower()
            if pair.is_websocket and state.faults.block_websocket:
                writer.write(_FORBIDDEN)
                await writer.drain()
                writer.close()
                await writer.wait_closed()
                return
            while pair.is_websocket and state.faults.hang_websocket:
                await state.healed.wait()
            from_server, pair.server = await asyncio.open_connection(*target)
            await asyncio.gather(
                self._copy(reader, pair.server, pair, first),
                self._copy(from_server, writer, pair, None),
            )
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            pair.reset()
            state.pairs.discard(pair)

    async def _copy(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: _Pair,
        first: bytes | None,
    ) -> None:
        """Forward one direction. `first`: what the client's side has read; None: the server's."""
        state = self._state
        is_answer = first is None
        piece = first or await source.read(_PIECE_BYTES)
        while piece:
            while state.faults.stall:
                await state.healed.wait()
            if state.faults.delay_s:
                await asyncio.sleep(state.faults.delay_s)
            if is_answer:
                pair.answered_bytes += len(piece)
                most = state.faults.cut_after_bytes
                if state.faults.lose_answers or (most is not None and pair.answered_bytes > most):
                    raise ConnectionResetError
            sink.write(piece)
            await sink.drain()
            piece = await source.read(_PIECE_BYTES)
        if sink.can_write_eof():
            sink.write_eof()
        if is_answer:
            # The server is done. What the client still sends would reach nobody.
            await sink.drain()
            sink.close()

    # --- The control port ----------------------------------------------------------------------

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *headers = head.split("\r\n")
            method, path, _ = line.split(" ", 2)
            sizes = [h[15:] for h in headers if h.lower().startswith("content-length:")]
            length = int(sizes[0]) if sizes else 0
            body = await reader.readexactly(length)
            status, answer = self._answer_control(method, path, body)
            raw = json.dumps(answer).encode()
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                "Access-Control-Allow-Origin: *\r\nAccess-Control-Allow-Headers: *\r\n"
                f"Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n".encode() + raw
            )
            await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer_control(self, method: str, path: str, body: bytes) -> tuple[str, dict[str, Any]]:
        name, _, query = path.partition("?")
        if method == "POST":
            if name == "/faults":
                try:
                    self._set(dict(json.loads(body)))
                except (KeyError, TypeError, ValueError) as ex:
                    return "400 Bad Request", {"error": str(ex)}
            elif name == "/heal":
                self._heal()
            elif name == "/cut":
                self._cut("kind=websocket" in query)
            else:
                return "404 Not Found", {"error": f"{name}: expected /faults, /heal or /cut"}
        return "200 OK", {
            "faults": asdict(self._state.faults),
            "open": len(self._state.pairs), "accepted": self._state.accepted,
        }


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host or "127.0.0.1", int(port)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.fault_proxy")
    parser.add_argument("--target", type=_address, action="append", required=True)
    parser.add_argument("--port", type=int, action="append", default=[])
    args = parser.parse_args()
    with FaultProxy(args.target, args.port) as proxy:
        print(json.dumps({"ports": proxy.ports, "control": proxy.control_port}), flush=True)
        sys.stdin.buffer.read()  # ends with the process that started it


if __name__ == "__main__":
    main()
