"""The standard library made cooperative by gevent, in two steps.

`patch` is the first call of the template process: it patches everything but `os.fork`,
`os.waitpid`, `signal.signal` and the queues. Gevent's forms of these make a hub, which a process
that forks workers (the template, gunicorn's arbiter) must not have. `patch_worker` patches these
too, in a worker, after the last fork.

Invariant: `patch` makes no hub. Called by `workers.template`, `workers.boot` and
`workers.http.server`.
"""

from __future__ import annotations

import warnings

from gevent import events, monkey


def patch() -> None:
    """Patch what a forking process may have patched. Call it before any other import."""
    # PERF: gevent looks for plug-ins in the metadata of each installed distribution, a dozen times:
    # 0.09 s of CPU in place of 0.02, at each start.
    events.notify_and_call_entry_points = events.notify
    monkey.patch_all(os=False, signal=False, queue=False)


def patch_worker() -> None:
    """Patch the rest, in a process that forks no more."""
    with warnings.catch_warnings():
        # gevent warns of a patch that comes after the import of `ssl`, which it has patched itself.
        warnings.simplefilter("ignore", monkey.MonkeyPatchWarning)
        monkey.patch_os()
        monkey.patch_signal()
        monkey.patch_queue()
