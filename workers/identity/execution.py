"""Execution: carries out one call of the identity process, from its bytes to its answer's.

Invariants: a call past its deadline is not carried out, so a client that got 503 meets no late
effect. An error that a flow raises travels as itself; nothing of a call is logged but its action
and the code of its error. Metric: pylon_identity_calls_total. Called by `workers.identity.server`
for each call, and by tests.
"""

from __future__ import annotations

from pylon import metrics
from pylon.api.identity.routes import ROUTE_BY_ACTION
from pylon.auth.freshness import require_fresh
from pylon.bus.identity import calls, encode
from pylon.errors import NotFound, PylonError, Unavailable
from pylon.trace_context import outgoing
from workers.identity.actions import ACTIONS, INNER_ACTIONS
from workers.identity.identity import Call, Identity


def execute(identity: Identity, command: bytes) -> bytes:
    """Carry out an encoded `IdentityCall`; return its `IdentityAnswer`, encoded.

    Raises:
        PylonError: the error of the flow.
    """
    call = calls.decode(command)
    flow = ACTIONS.get(call.action) or INNER_ACTIONS.get(call.action)
    if flow is None:
        raise NotFound(f"No action {call.action!r}")
    try:
        if identity.app.clock.monotonic_s() > call.deadline_s:
            raise Unavailable("The request waited too long", hint="Try again in a moment")
        made = Call(call.body, call.params, call.facts)
        route = ROUTE_BY_ACTION.get(call.action)
        if route is not None and route.who == "fresh":
            require_fresh(
                made.caller, identity.app.manifest.auth.reauth_s, identity.app.clock,
                identity.store.point,
            )
        outgoing.set(call.facts.traceparent)  # of this greenlet, which has this call only
        answer = flow(identity, made)
    except PylonError as ex:
        metrics.IDENTITY_CALLS.labels(call.action, ex.code).inc()
        raise
    metrics.IDENTITY_CALLS.labels(call.action, "ok").inc()
    return encode(answer)
