"""Every metric of the project: prometheus_client's counters, gauges and histograms, as constants.

A module for each thing that counts: `workers` (any worker), `http`, `sockets`, `shards`,
`identity`, `bus`, `cluster`, `writer`, `database`, `supervisor`, `files`. Callers use the
constants: ``metrics.BUS_DROPPED.labels("status").inc()``. Code that runs for each request
or message keeps the child of `labels(…)`: the look-up takes a lock. Labels never carry ids.

Invariants: only the modules of this package declare metrics; names follow Prometheus' rules (base
units, `_total` on counters); importing this package starts no thread and touches no file, so a
process may fork after it.
"""

from pylon.metrics.families.bus import *  # noqa: F403
from pylon.metrics.families.cluster import *  # noqa: F403
from pylon.metrics.families.database import *  # noqa: F403
from pylon.metrics.families.files import *  # noqa: F403
from pylon.metrics.families.http import *  # noqa: F403
from pylon.metrics.families.identity import *  # noqa: F403
from pylon.metrics.families.mail import *  # noqa: F403
from pylon.metrics.families.shards import *  # noqa: F403
from pylon.metrics.families.sockets import *  # noqa: F403
from pylon.metrics.families.supervisor import *  # noqa: F403
from pylon.metrics.families.workers import *  # noqa: F403
from pylon.metrics.families.writer import *  # noqa: F403
