"""The identity process: answers the calls of the HTTP workers (`pylon.bus.identity`).

It has no listening port, a nice value of 10, and threads for password hashes. The template imports
this module for all roles, so the modules of flows and their libraries (argon2, cryptography) are
imported by `run`, after the fork: no other process has them. The process reports that it is ready
before it imports the flows, and so the libraries of passkeys and JWTs. A call that comes meanwhile
waits for them.

PERF: these imports take 0.2 s of CPU, which each start and each restart would wait for.

Each call runs in a greenlet of its own. On SIGTERM the process ends once its calls have ended, at
most after `PYLON_DRAIN_SECS`; by then no HTTP worker is left to call, and it begins no more mails.
A greenlet that fails ends the process, and the supervisor starts another one. Log: worker.ready,
worker.drained, worker.failed. Started by `workers.template` (`pylon.roles`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import signal
import sys
from functools import partial
from typing import Any, Final, NoReturn

import gevent
from gevent.event import Event

from pylon import log
from pylon.app import App
from pylon.auth.disposable_domains import disposable_domains
from pylon.auth.issue import session_issuer
from pylon.auth.password_rules import PasswordRules, password_rules
from pylon.auth.secret_key import read_keys
from pylon.bus.calls import CallPort
from pylon.bus.identity import CHANNEL
from pylon.bus.signals import SignalSender
from pylon.bus.writer_client import WriterClient
from pylon.errors import StartRefused
from pylon.mail.outbox import Mails
from pylon.mail.senders import make_sender
from pylon.mail.templates import load_templates
from pylon.runtime.interpreter import freeze
from workers.boot import EXIT_CONFIG, WorkerContext, boot, run_status

_NICE: Final = 10
_EXIT_DEFECT: Final = 70  # EX_SOFTWARE
_POLL_S: Final = 0.05
# The slow parts of the imports first, each by itself.
_LATE_MODULES: Final = (
    "email_validator", "cryptography.x509", "joserfc.jws", "urllib3", "webauthn",
    "workers.identity.actions", "workers.identity.execution",
)

_log = log.get_logger("identity")


def run() -> NoReturn:
    """Be the process of this role, from its fork to its end."""
    os.nice(_NICE)  # before any thread starts, since threads inherit it
    serve(boot())


def serve(booted: WorkerContext) -> NoReturn:
    """Serve until SIGTERM.

    Raises:
        SystemExit: 78 when a setting of sign-in cannot be used (the reason is logged).
    """
    woken = Event()  # there may be a mail to send
    try:
        identity = make_identity(booted, woken)
    except StartRefused as ex:
        _log.error("worker.refused", code=ex.code, message=ex.message)
        raise SystemExit(EXIT_CONFIG) from ex
    port = CallPort(booted.runtime.identity, CHANNEL, partial(execute, identity))
    stop = Event()
    gevent.signal_handler(signal.SIGTERM, stop.set)
    gevent.signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C: the supervisor drains
    spawn(port.run)
    spawn(lambda: import_flows(identity))
    jobs = importlib.import_module("workers.identity.carry_jobs")
    spawn(lambda: jobs.run_carry_jobs(identity))
    reseals = importlib.import_module("workers.identity.seal_jobs")
    spawn(lambda: reseals.run_seal_jobs(identity))
    spawn(lambda: run_status(booted, lambda: not stop.is_set(), lambda: port.running))
    delivery = make_delivery(identity, woken)
    if delivery is not None:
        spawn(delivery.run)
    booted.status_changed.set()
    _log.info("worker.ready")
    stop.wait()
    deadline_s = booted.clock.monotonic_s() + booted.app.config.drain_s
    if delivery is not None:
        delivery.stop()
    while booted.clock.monotonic_s() < deadline_s and (
        port.running or (delivery is not None and delivery.sending)
    ):
        gevent.sleep(_POLL_S)
    _log.info("worker.drained", unanswered=port.running)
    _exit_now(0)


def make_identity(booted: WorkerContext, woken: Event) -> Any:
    """Import the flows, and return the `Identity` that they get.

    Raises:
        StartRefused: there is no secret key, or a list of passwords or domains cannot be read.
    """
    hashing = importlib.import_module("workers.identity.hashing")
    services = importlib.import_module("workers.identity.identity")
    app = booted.app
    keys = read_keys(app.config)
    if keys is None:
        raise StartRefused("there is no secret key: the supervisor makes it before its workers")
    keys.load_ciphers()
    mails = Mails(
        load_templates(app.config), app.manifest.name, keys, app.clock, app.random,
        is_configured=make_sender(app.config) is not None, is_dev=app.config.dev_mode,
    )
    return services.Identity(
        app=app, store=booted.reader_pool, writer=WriterClient(booted.runtime, app.clock),
        hashes=hashing.HashPool(hashing.hash_threads(app.config.auth_hash_threads)),
        keys=keys, rules=make_rules(app), issuer=session_issuer(app),
        providers=make_providers(app), jwts=functools.cache(partial(make_jwts, app)),
        mails=mails, wake_mail=woken.set,
        captcha=importlib.import_module("workers.identity.captcha").make_captcha(app.config),
        disposable=disposable_domains(app.config),
        send_signal=SignalSender(booted.runtime).send,
    )


def execute(identity: Any, command: bytes) -> bytes:
    """Carry out a call. The first one imports the flows, unless `import_flows` has done it."""
    answer: bytes = importlib.import_module("workers.identity.execution").execute(identity, command)
    return answer


def import_flows(identity: Any) -> None:
    """Import the flows and their libraries, and make what they share.

    Heartbeats and calls go on between two modules: the process has a nice value of 10, so on a busy
    machine all the imports together could take as long as a silent process may live.
    """
    for module in _LATE_MODULES:
        importlib.import_module(module)
        gevent.sleep(0)
    identity.jwts()
    freeze()


def make_providers(app: App) -> Any:
    """Return the configured providers by name."""
    if not app.config.sign_in_providers:
        return {}
    return importlib.import_module("workers.identity.providers.client").make_providers(app)


def make_jwts(app: App) -> Any:
    """Return the keys of JWTs."""
    return importlib.import_module("workers.identity.jwts").make_jwts(app.config, app.clock)


def make_rules(app: App) -> PasswordRules:
    """Return the rules of passwords, which ask the online list if the operator wants it.

    Raises:
        StartRefused: the file of stolen passwords cannot be read.
    """
    rules = password_rules(app.config, app.manifest)
    if not app.config.hibp:
        return rules
    ranges = importlib.import_module("workers.identity.pwned_ranges")
    return dataclasses.replace(rules, is_stolen_online=ranges.pwned_ranges())


def make_delivery(identity: Any, woken: Event) -> Any:
    """Return the delivery of mails, or None if there is nothing to send them by."""
    app = identity.app
    sender = make_sender(app.config)
    if sender is None:
        return None
    delivery = importlib.import_module("workers.identity.mail_delivery").MailDelivery
    return delivery(
        identity.store, identity.writer, identity.keys, identity.mails, sender, app.clock,
        app.random, woken=woken,
    )


def spawn(loop: Any) -> None:
    """Run `loop` in a greenlet whose failure ends the process."""
    gevent.spawn(loop).link_exception(_exit_failed)


def _exit_failed(greenlet: gevent.Greenlet[..., Any]) -> None:
    _log.exception("worker.failed", error=greenlet.exception or RuntimeError("unknown"))
    _exit_now(_EXIT_DEFECT)


def _exit_now(code: int) -> NoReturn:
    """End the process now: a normal exit could wait for threads of ZeroMQ and gevent."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
