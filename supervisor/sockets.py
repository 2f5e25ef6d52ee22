"""Listening sockets: one for each role with a port.

The supervisor binds them, or takes them over from systemd.

It keeps each socket open until its end, and passes the descriptor to each worker of the role. So
connections wait in the kernel's backlog while a dead worker has no successor yet. `open_listeners`
assigns sockets of systemd (LISTEN_FDS) to roles by FileDescriptorName, else in the order http, ws,
sse, shards. systemd keeps its copy of them open while Pylon restarts.

A restart executes the program anew in the same process, and leaves it the sockets
(`pack_listeners`): connections wait in the backlog meanwhile.

`Listeners.ports` has the ports of the sockets. systemd's sockets override the port settings;
`port_warnings` reports that. `open_listeners` closes systemd's socket of a role that is switched
off, and returns a warning.

Invariants: this module never calls `shutdown` on a socket, because that would end systemd's copy
too. If `open_listeners` raises because a port is taken, it has closed all sockets. Called by
`supervisor.main`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Mapping
from typing import Final

import msgspec

from pylon.config import Config, Loaded
from pylon.errors import StartRefused
from pylon.roles import PORT_BY_ROLE
from pylon.runtime.handshake_filter import refuse_handshakes

_FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_BACKLOG: Final = 4_096


class Listeners(msgspec.Struct, frozen=True):
    """One socket for each role with a port that is switched on."""

    by_role: dict[str, socket.socket]
    ports: dict[str, int]
    warnings: tuple[str, ...] = ()
    of_systemd: frozenset[str] = frozenset()  # roles whose sockets systemd has passed

    def refuse_handshakes(self) -> int:
        """Let the sockets take no new connection, while workers accept those in the backlog. Those
        of systemd take them further, for the next start. Return how many sockets refuse now."""
        ours = [self.by_role[role] for role in self.by_role.keys() - self.of_systemd]
        return sum(
            refuse_handshakes(sock) for sock in ours if sock.family != socket.AF_UNIX
        )

    def close(self) -> None:
        """Close the descriptors of this process, without a shutdown (see the module)."""
        for sock in self.by_role.values():
            sock.close()


def open_listeners(
    config: Config, environ: Mapping[str, str], pid: int, first_fd: int = _FIRST_FD,
    kept: Listeners | None = None,
) -> Listeners:
    """Return the sockets that systemd passed, or those of the last run, and bind the missing ones.

    Args:
        pid: of this process; systemd names the process that its sockets are for.
        first_fd: the first descriptor that systemd passed.
        kept: the sockets of the run before a reload; systemd's were among them. Those that still
            have the address of their role stay open, so that no connection is refused. The others
            are closed.

    Raises:
        StartRefused: a port is taken or this user may not bind it (the text names port and
            setting), or systemd's sockets do not fit the roles.
    """
    wanted = [role for role in PORT_BY_ROLE if config.workers_of(role)]
    if kept is None:
        opened = _take_from_systemd(wanted, environ, pid, first_fd)
        of_systemd = frozenset(opened)
    else:
        opened = _keep_fitting(kept, config)
        of_systemd = kept.of_systemd
    warnings = []
    for role in [role for role in opened if role not in wanted]:
        opened.pop(role).close()
        warnings.append(
            f"systemd listens for {role}, which is switched off: its clients wait in vain "
            f"(systemctl disable --now pylon-{role}.socket)"
        )
    try:
        for role in wanted:
            if role not in opened:
                opened[role] = _bind(
                    config.bind, config.port_of(role), PORT_BY_ROLE[role].hint
                )
    except StartRefused:
        for sock in opened.values():
            sock.close()
        raise
    by_role = {role: opened[role] for role in wanted}
    ports = {role: _port_of(sock, config.port_of(role)) for role, sock in by_role.items()}
    return Listeners(by_role, ports, tuple(warnings), of_systemd & by_role.keys())


def _keep_fitting(kept: Listeners, config: Config) -> dict[str, socket.socket]:
    """Return the kept sockets that listen where their role is to listen; close the others.

    systemd's sockets win over the settings, as at a start.
    """
    fitting = {}
    for role, sock in kept.by_role.items():
        address = (config.bind, config.port_of(role))
        is_fitting = role in kept.of_systemd or sock.getsockname()[:2] == address
        if config.workers_of(role) and is_fitting:
            fitting[role] = sock
        else:
            sock.close()
    return fitting


def pack_listeners(listeners: Listeners) -> str:
    """Return the sockets as a program that this process executes next takes them over.

    Their descriptors stay open through the exec.
    """
    for sock in listeners.by_role.values():
        sock.set_inheritable(True)
    return json.dumps({
        role: [sock.fileno(), role in listeners.of_systemd]
        for role, sock in listeners.by_role.items()
    })


def unpack_listeners(packed: str) -> Listeners:
    """Return the sockets that the program before this one has left (`pack_listeners`)."""
    by_role: dict[str, socket.socket] = {}
    of_systemd: set[str] = set()
    for role, (fd, is_of_systemd) in json.loads(packed).items():
        by_role[role] = socket.socket(fileno=fd)
        by_role[role].set_inheritable(False)
        if is_of_systemd:
            of_systemd.add(role)
    ports = {role: _port_of(sock, 0) for role, sock in by_role.items()}
    return Listeners(by_role, ports, of_systemd=frozenset(of_systemd))


def port_warnings(loaded: Loaded, ports: Mapping[str, int]) -> list[str]:
    """Return warnings about port settings that systemd's sockets override."""
    return [
        f"{entry.setting} makes the {role} port {loaded.config.port_of(role)}, but "
        f"systemd listens on {ports[role]}, which counts: ListenStream= of its unit sets it"
        for role, entry in PORT_BY_ROLE.items()
        if role in ports and ports[role] != loaded.config.port_of(role)
        and {loaded.origin[entry.setting], loaded.origin["PYLON_PORT"]} != {"default"}
    ]


def _port_of(sock: socket.socket, default: int) -> int:
    """Return the port of a socket; `default` for a Unix socket, which only a proxy connects to."""
    return default if sock.family == socket.AF_UNIX else int(sock.getsockname()[1])


def _take_from_systemd(
    wanted: list[str], environ: Mapping[str, str], pid: int, first_fd: int
) -> dict[str, socket.socket]:
    """Return the sockets that systemd passed to this process, by role (sd_listen_fds(3))."""
    if environ.get("LISTEN_PID") != str(pid) or not environ.get("LISTEN_FDS", "").isdigit():
        return {}  # systemd passed no socket, or passed them to another process
    fds = range(first_fd, first_fd + int(environ["LISTEN_FDS"]))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    if len(names) != len(fds) or not set(names) <= set(PORT_BY_ROLE):
        names = list(PORT_BY_ROLE) if len(fds) == len(PORT_BY_ROLE) else wanted[: len(fds)]
    if len(set(names)) != len(fds):
        raise StartRefused(
            f"systemd passed {len(fds)} sockets ({environ.get('LISTEN_FDNAMES', 'unnamed')}) for "
            f"the roles {', '.join(wanted)}: give one socket for each role, named after it"
        )
    taken: dict[str, socket.socket] = {}
    for name, fd in zip(names, fds, strict=True):
        try:
            sock = socket.socket(fileno=fd)
            listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as ex:
            raise StartRefused(f"systemd's socket {fd} for {name}: {ex.strerror}") from ex
        if not listening:
            raise StartRefused(f"systemd's socket {fd} for {name} does not listen (Accept=no?)")
        os.set_inheritable(fd, False)  # the supervisor passes it to the workers of one role only
        taken[name] = sock
    return taken


def _bind(host: str, port: int, setting: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as ex:
        sock.close()
        if ex.errno == errno.EADDRINUSE:
            why = f"Port {port} on {host} is taken: stop what listens there, or set {setting}"
        elif ex.errno == errno.EACCES:
            why = f"Port {port} may not be bound by this user: set {setting} to 1024 or above"
        else:
            reason = ex.strerror or ex
            why = f"Cannot listen on {host} port {port}: {reason} (see PYLON_BIND, {setting})"
        raise StartRefused(why) from ex
    return sock
