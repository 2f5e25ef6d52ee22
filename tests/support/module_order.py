"""The order of test modules in a run that gives each worker whole modules (`--dist loadfile`).

xdist itself begins with the modules of most tests. The longest modules here have few tests, so
xdist would begin them last, and one worker would still run when the others are done. `order_items`
puts the modules that take long in front, the longest first. The others follow by their number of
tests. The order is the same in all workers, as xdist demands.

`SECONDS` need not be exact or whole: a module that is missing comes a little late.
`tests/conftest.py` calls `order_items`; the Makefile turns xdist's own order off
(`--no-loadscope-reorder`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import pytest

# Measured on two shared cores with three modules at a time, 28 November 2026.
SECONDS: Final = {
    "identity/test_crashes.py": 285, "test_fuzz_schemathesis.py": 236,
    "test_bench_tools.py": 201, "test_e2e_proxies.py": 155, "matrix/test_matrix.py": 140,
    "test_e2e_promise.py": 139, "test_e2e_promise_kills.py": 136, "nodes/test_upgrade.py": 135,
    "test_deploy_booted.py": 130, "test_e2e_faults.py": 130, "nodes/test_shards.py": 128,
    "test_e2e_migrate.py": 124, "nodes/test_three_nodes.py": 118, "test_sse_server.py": 113,
    "identity/test_mail_processes.py": 108, "test_e2e_tiers.py": 108,
    "faults/test_named_faults.py": 107, "test_autobahn.py": 93, "test_e2e_reload.py": 88,
    "test_ws_api_keys.py": 84, "test_supervisor.py": 83, "attacks/test_c5_passwords.py": 82,
    "test_e2e_shards.py": 77, "test_ws_replay.py": 72, "test_ws_documents.py": 71,
    "test_packaging.py": 67, "test_ws_server.py": 66, "test_deploy_shapes.py": 65,
    "test_e2e_restart.py": 62, "test_supervisor_generations.py": 61, "test_cli_advise.py": 60,
    "test_e2e_sessions.py": 54, "test_e2e_roles.py": 53, "attacks/test_a5_connections.py": 50,
    "test_e2e_scopes.py": 47, "test_docs_incidents.py": 44, "test_e2e_reconnect.py": 43,
    "test_cli_verbs.py": 43, "nodes/test_partition.py": 42, "nodes/test_cluster.py": 42,
}


def order_items(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Return `items` with the modules that take longest first, each with its tests in order."""
    modules = [item.nodeid.split("::", 1)[0].removeprefix("tests/") for item in items]
    counts = Counter(modules)
    rank = {
        module: (-SECONDS.get(module, 0), -count, module) for module, count in counts.items()
    }
    ranked = sorted(zip(modules, items, strict=True), key=lambda pair: rank[pair[0]])
    return [item for _, item in ranked]
