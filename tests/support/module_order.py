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
    "identity/test_crashes.py": 164, "test_bench_tools.py": 141, "test_sse_server.py": 134,
    "test_e2e_shards.py": 132, "faults/test_named_faults.py": 129, "test_deploy_booted.py": 129,
    "test_e2e_faults.py": 125, "nodes/test_shards.py": 114, "test_e2e_promise.py": 111,
    "nodes/test_three_nodes.py": 105, "matrix/test_matrix.py": 98, "nodes/test_cluster.py": 97,
    "test_e2e_migrate.py": 91, "attacks/test_c5_passwords.py": 88, "nodes/test_upgrade.py": 81,
    "test_e2e_tiers.py": 76, "test_autobahn.py": 74, "test_fuzz_schemathesis.py": 74,
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
