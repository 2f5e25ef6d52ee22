"""Supervisor: `run` assembles its parts, serves until a stop, and drains.

A start checks in this order, and changes nothing before a check: settings, manifest and policies;
data directory, lock and ports; the schema. A failed check raises `StartRefused`; the caller prints
it as one line and exits with 78.

Invariants: the supervisor takes the lock on the pidfile first and releases it last. It starts
workers only when the store is ready and the bus is bound. It closes all that it has opened in the
reverse order, also when the start fails half-way. Called by `pylonctl start`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

import pylon
from pylon import log, metrics
from pylon.archive.url import open_archive
from pylon.auth.secret_key import key_file_of, settle_keys
from pylon.auth.session_life import session_life
from pylon.bus.runtime import Runtime, make_runtime_dir
from pylon.bus.signals import PlainSignalSender, SignalProxy
from pylon.bus.status import StatusReceiver
from pylon.clock import NS_PER_S, Clock, SystemClock, SystemRandom
from pylon.config import Config, Loaded
from pylon.data_dir import data_dir_warnings, keep_private, prepare_data_dir
from pylon.data_dir_lock import DataDirLock, pidfile_of
from pylon.disk_errors import start_error
from pylon.ids import RowIds
from pylon.manifest.model import Manifest
from pylon.manifest.places import write_places
from pylon.policy.rules import compile_rules
from pylon.realtime.app_module import try_app_module
from pylon.roles import PORT_BY_ROLE, ROLE_NAMES
from pylon.runtime import fd_budget
from pylon.runtime.boot_id import read_boot_id
from pylon.runtime.interpreter import freeze
from pylon.startup import load_checked, start_warnings
from pylon.storage.backend import Backend
from pylon.storage.backups import LogCapture
from pylon.storage.factory import open_store
from pylon.storage.nodes import NodeFacts
from pylon.storage.public_rows import PublicRows
from supervisor import seed
from supervisor.backups import Backups
from supervisor.children import Children
from supervisor.closers import Closers
from supervisor.cluster import prepare_cluster
from supervisor.components import Components
from supervisor.control import ControlServer
from supervisor.control_handlers import ControlHandlers
from supervisor.disk_guard import DiskGuard
from supervisor.drain import EXIT_COMPLETE, EXIT_CUT_SHORT, Drain
from supervisor.events import Broken, Events, Progress, RolesChanged
from supervisor.flusher import Flusher
from supervisor.generations import Generations, Kind, Lifetime
from supervisor.heartbeats import Heartbeats
from supervisor.hints import PreviousRun, save_hints
from supervisor.loop import Loop, queue_signals
from supervisor.moving import Moving
from supervisor.node_hints import NodeHints
from supervisor.node_name import with_node_name
from supervisor.node_rates import NodeRates
from supervisor.nodes import Nodes
from supervisor.notify import Notifier
from supervisor.pending_schema import PendingSchema
from supervisor.relay import Relay
from supervisor.restart import GENERATION, execute_anew, take_over
from supervisor.rooms import RoomsThread
from supervisor.shipper import Shipper, ShippingPlan
from supervisor.sockets import (
    Listeners,
    open_listeners,
    port_warnings,
)
from supervisor.template import Template, start_template
from supervisor.writer import Writer

_INCARNATION_BYTES: Final = 8
EXIT_BROKEN: Final = 70  # EX_SOFTWARE: a part failed that nothing works without

_log = log.get_logger("supervisor")


def run(
    loaded: Loaded, template: Template | None = None, reread: Callable[[], Loaded] | None = None,
    announce: Callable[[Loaded], None] = lambda _: None,
    check_program: Callable[[], None] | None = None,
) -> int:
    """Serve until stopped.

    Args:
        template: one that has been started, so that its imports run beside ours. This function
            ends it.
        reread: reads the settings again, for a reload (`supervisor.generations`). If the
            supervisor itself needs them, all begins anew but for this process, the template and
            the listeners: what is imported stays, and no connection is refused.
        announce: is called when a run begins, and after a reload.
        check_program: has the program on disk check its settings, for a restart, and raises
            ReloadRefused. A restart executes that program in place of this one: this function does
            not return then.

    Returns:
        0 after a complete drain, 75 after one that was cut short or met a disk that it could not
        write to, 70 when the writer broke.

    Raises:
        StartRefused: nothing was started.
    """
    if template is None:
        template = start_template()
    kept, generation = take_over(os.environ)
    lifetime = Lifetime(loaded, loaded, reread, check_program, announce, generation)
    try:
        while True:
            announce(lifetime.loaded)
            code, kept = _run_once(lifetime, template, kept)
            if kept is None:
                return code
            if lifetime.restarts:
                template.stop()
                execute_anew(kept, lifetime.generation)
    finally:
        template.stop()
        if kept is not None:
            kept.close()


def _run_once(
    lifetime: Lifetime, template: Template, kept: Listeners | None
) -> tuple[int, Listeners | None]:
    """Serve until stopped or reloaded. Returns the exit code, or the listeners for the next run."""
    loaded, config = lifetime.loaded, lifetime.loaded.config
    log.configure(config.log_format, config.log_level, "supervisor", "")
    keep_private()
    fd_budget.raise_limit()
    manifest = load_checked(loaded)
    for warning in (*start_warnings(loaded, manifest), *fd_budget.warnings()):
        _log.warning("settings", message=warning)
    if kept is None:  # else whoever asked for the reload has tried it
        try_app_module(config)
    prepare_data_dir(config)
    for warning in data_dir_warnings(config):
        _log.warning("data_dir", message=warning)
    with Closers() as stack:
        try:
            parts = _assemble(lifetime, manifest, template, kept, os.environ, stack)
        except OSError as ex:
            raise start_error(ex, f"{config.data_dir} or the runtime directory") from ex
        code = _serve(parts, lifetime, stack)
    if stack.keeps_ports:
        return code, parts.listeners
    return EXIT_CUT_SHORT if stack.has_failed and code == EXIT_COMPLETE else code, None


def _assemble(
    lifetime: Lifetime, manifest: Manifest, template: Template, kept: Listeners | None,
    environ: Mapping[str, str], stack: Closers,
) -> Components:
    clock, pid = SystemClock(), os.getpid()
    loaded = with_node_name(lifetime.loaded, SystemRandom())
    config = loaded.config
    rules = compile_rules(manifest, explain=config.dev_mode)
    pidfile = DataDirLock.acquire(pidfile_of(Path(config.db_path).absolute()))
    stack.callback(pidfile.release)
    listeners = open_listeners(config, environ, pid, kept=kept)
    stack.callback(stack.close_ports, listeners)
    for warning in (*listeners.warnings, *port_warnings(loaded, listeners.ports)):
        _log.warning("settings", message=warning)
    store = stack.enter_context(open_store(config).provision())
    db_path = store.data_path
    boot_id = read_boot_id()
    previous_run = PreviousRun(db_path, pidfile.left_behind, boot_id, clock)
    runtime = make_runtime_dir(config, environ.get("RUNTIME_DIRECTORY"))
    stack.callback(runtime.remove)
    # Every worker loads the validated text, whatever happens to the file meanwhile.
    text = manifest.text.encode()  # with its lines, which refusals in dev mode name
    try:
        runtime.manifest.write_bytes(text)
        write_places(runtime.manifest, manifest.places)
    except OSError as ex:  # names no file where it is the writing that fails
        raise start_error(ex, runtime.manifest) from ex

    events: Events = Events()
    queue_signals(events)

    def broken(error: BaseException) -> None:
        events.put(Broken(error))

    threading.excepthook = log.thread_hook(broken)
    capture = None
    if config.backup_url is not None:
        capture = store.capture_log(clock, SystemRandom(), config.backup_interval_s)
    if capture is not None:
        stack.callback(capture.close)
    engine = store.open_writer(manifest, rules, clock)
    stack.callback(engine.close)
    keys, run_key = settle_keys(config, store, SystemRandom())
    _log.info("secret_key.read", kids=list(keys.kids))
    _carry_hints(previous_run, store, manifest, runtime)
    stack.callback(save_hints, db_path, runtime, boot_id, clock)
    source = store.changes(clock, SystemRandom(), config.database_poll_s)
    rows = PublicRows(manifest.entities)
    relay = None
    if source is not None:
        relay = Relay(source, runtime, broken, rows, clock)
        relay.start()
        stack.callback(relay.stop)
    nodes = _join_nodes(
        store, config, manifest, clock, broken, curve_key=prepare_cluster(config, runtime)
    )
    pending = PendingSchema(
        store.schema, manifest, others=None if nodes is None else lambda: nodes.others
    )
    pending.start()
    stack.callback(pending.stop)
    node_hints = node_rates = None
    if nodes is not None:
        node_rates = NodeRates(nodes, clock)
        node_hints = NodeHints(runtime.hints, config.workers_of("http"), nodes, clock)
    # The disk of a PostgreSQL server is not ours to measure.
    has_disk = relay is None and not config.in_memory
    disk_guard = DiskGuard(
        store.data_path.parent, config.disk_floor_bytes if has_disk else 0, clock
    )
    writer = Writer(
        runtime, engine, broken, rows, clock,
        hand_over=None if relay is None else relay.hand_over, find_refusal=disk_guard.find_refusal,
    )
    writer.start()
    stack.callback(writer.stop)
    flusher = Flusher(
        engine.maintenance, config.change_log_retain, clock, config.change_log_retain_bytes,
        leads=lambda: nodes is None or nodes.leads, life=session_life(manifest.auth),
        audit_retain_days=config.audit_retain_days, guest_retain_days=config.guest_retain_days,
    )
    flusher.start()
    stack.callback(flusher.stop)
    shipper = _make_shipper(config, capture, runtime, clock)
    if shipper is not None:
        shipper.start()
        stack.callback(shipper.stop)
    proxy = SignalProxy(runtime)
    proxy.start()
    stack.callback(proxy.stop)
    rooms = RoomsThread(runtime, clock, SystemRandom(), nodes)
    rooms.start()
    stack.callback(rooms.stop)
    if nodes is not None and node_hints is not None and node_rates is not None:
        stack.callback(node_hints.close)
        stack.callback(node_rates.close)
        nodes.start()
        stack.callback(nodes.stop)
        node_rates.open(runtime.rates)
    heartbeats = Heartbeats(
        clock, lambda: events.put(RolesChanged()), flusher.note_used_sessions,
        _ignore_rates if node_rates is None else node_rates.note,
    )
    heartbeats.start(StatusReceiver(runtime))
    stack.callback(heartbeats.stop)
    signals = PlainSignalSender(runtime)
    stack.callback(signals.close)
    if config.seed is not None and (nodes is None or nodes.leads):  # one of all nodes plants it
        _plant_seed(Path(config.seed), store, manifest, runtime)
    wanted = {role: config.workers_of(role) for role in ROLE_NAMES if config.workers_of(role)}

    def make_environ(loaded: Loaded, generation: int) -> dict[str, str]:
        return _child_environ(
            with_node_name(loaded, SystemRandom()), environ, store, listeners.ports, run_key,
            generation,
        )

    children = Children(
        template, wanted, listeners, runtime, make_environ(loaded, lifetime.generation),
        heartbeats, clock, SystemRandom(),
    )
    notifier = Notifier(environ, pid)
    generations = Generations(lifetime, manifest, children, events, notifier, make_environ)
    children.on_ended = rooms.worker_ended
    stack.callback(children.kill_all)
    pidfile.write(
        pid=pid, runtime_dir=str(runtime.dir), ports=listeners.ports,
        started_at_s=clock.wall_ns() / NS_PER_S,
    )
    if not rules.rooms:
        _log.info(
            "rooms.open",
            message="every session may join every room: the manifest has no policy of rooms",
            hint='add one with "room" and "allowJoin" to its policies (docs/manifest.md, Rooms)',
        )
    return Components(
        config=config, clock=clock, runtime=runtime, store=store, listeners=listeners,
        events=events, progress=Progress(), engine=engine, writer=writer, relay=relay,
        nodes=nodes, flusher=flusher, disk_guard=disk_guard, pending=pending, capture=capture,
        shipper=shipper,
        heartbeats=heartbeats, rooms=rooms, children=children, marks=previous_run.marks,
        backups=Backups(store.data_path, engine.maintenance.sizes, runtime.manifest, clock),
        signals=signals, notifier=notifier, generations=generations,
    )


def _serve(parts: Components, lifetime: Lifetime, stack: Closers) -> int:
    started_s = parts.clock.monotonic_s()
    loop = Loop(parts, started_s)
    generations = parts.generations
    handlers = ControlHandlers(parts, loop, os.getpid(), started_s)
    control = ControlServer(
        parts.runtime.control_socket, handlers.by_name(),
        {"backup": parts.backups.converse, "move": Moving(parts.writer).converse},
    )
    stack.callback(control.close)
    control.start()
    freeze()
    while not loop.stop_asked and loop.broken is None and generations.server_change is None:
        loop.pump()
    if loop.broken is None:
        stack.keeps_ports = not loop.stop_asked
        code = Drain(parts, loop, keeps_ports=stack.keeps_ports).run()
        if loop.stop_asked:  # meanwhile
            stack.keeps_ports = False
        elif generations.server_change is not None:
            lifetime.adopt(generations.server_change)
            lifetime.restarts = generations.server_change.kind is Kind.RESTART
            metrics.RELOADS.labels("done").inc()
        return code
    _log.error("supervisor.broken", error=str(loop.broken),
               hint="ending at once; what was acknowledged is committed")
    parts.children.kill_all()
    return EXIT_BROKEN


def _carry_hints(
    previous_run: PreviousRun, store: Backend, manifest: Manifest, runtime: Runtime
) -> None:
    reader = store.open_reader(manifest)
    try:
        previous_run.begin(
            reader, runtime, is_shared=not store.capabilities.own_writes_only
        )
    finally:
        reader.close()


def _make_shipper(
    config: Config, capture: LogCapture | None, runtime: Runtime, clock: Clock
) -> Shipper | None:
    if capture is None or config.backup_url is None:
        return None
    plan = ShippingPlan(
        url=config.backup_url, snapshot_hours=config.backup_snapshot_hours,
        keep=config.backup_keep, recipients=config.backup_recipients, hook=config.backup_hook,
        manifest=runtime.manifest,
        key_file=key_file_of(config) if config.secret_key_file is None else None,
    )
    url, access = config.backup_url, config.bucket_access
    return Shipper(capture, plan, clock, SystemRandom(), lambda: open_archive(url, access))


def _join_nodes(
    store: Backend, config: Config, manifest: Manifest, clock: Clock,
    broken: Callable[[BaseException], None], *, curve_key: str,
) -> Nodes | None:
    """Return this node's place among the others, not started; None: it is the only one."""
    random = SystemRandom()
    facts = NodeFacts(
        name=config.node or "", incarnation=random.token_hex(_INCARNATION_BYTES),
        roles=tuple(role for role in config.roles if config.workers_of(role)),
        version=pylon.__version__, manifest=sha256(manifest.text.encode()).hexdigest(),
        workers={role: config.workers_of(role) for role in config.roles},
        region=config.region or "", cluster_url=config.cluster_url or "", curve_key=curve_key,
    )
    link = store.nodes(facts, clock, random)
    return None if link is None else Nodes(link, facts.incarnation, clock, broken)


def _ignore_rates(spent: list[tuple[int, float]]) -> None:
    """The only node of a store counts rates in its table alone."""


def _plant_seed(path: Path, store: Backend, manifest: Manifest, runtime: Runtime) -> None:
    reader = store.open_reader(manifest)
    try:
        empty = reader.is_empty()
    finally:
        reader.close()
    if not empty:
        _log.info("seed.skipped", path=str(path), why="the database has rows")
        return
    rows = seed.load_seed(path, manifest, RowIds(SystemClock(), SystemRandom()), store.schema,
                          runtime)
    _log.info("seed.planted", path=str(path), rows=rows)


def _child_environ(
    loaded: Loaded, environ: Mapping[str, str], store: Backend, ports: Mapping[str, int],
    run_key: str | None, generation: int,
) -> dict[str, str]:
    """Our environment with every setting resolved, so that a child reads exactly ours.

    Children tell clients the ports; those of systemd's sockets win over the settings.

    Args:
        run_key: the secret key of this run, where no setting and no file has one.
        generation: of the children; so the template loads the app anew for each generation.
    """
    out = {name: value for name, value in environ.items() if not name.startswith("PYLON_")}
    out.update({name: value for name, value in loaded.raw.items() if value is not None})
    out.update(store.worker_settings())
    if run_key is not None:
        out["PYLON_SECRET_KEY"] = run_key
    out.update({PORT_BY_ROLE[role].setting: str(port) for role, port in ports.items()})
    out[GENERATION] = str(generation)
    return out
