"""Metrics: what a process reports, how processes are merged, and the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as strict_families,
)

from pylon import limits, metrics
from pylon.bus.messages import WorkerStatus
from pylon.bus.runtime import Runtime
from pylon.bus.status import StatusSender
from pylon.metrics import (
    Merged,
    render_json,
    render_openmetrics,
    render_text,
    snapshot,
    supervisor_snapshot,
    take_changes,
)
from pylon.metrics.processes import process_families
from pylon.metrics.registries import SUPERVISOR, WORKER
from pylon.metrics.wire import Family, Sample
from tests.support.measured import page_families, page_values

METHODS = ("GET", "POST", "PATCH", "DELETE", "OPTIONS")


def requests(*counts: tuple[str, str, str, float]) -> Family:
    return Family("pylon_http_requests_total", "Answered HTTP requests.", "counter", [
        Sample("pylon_http_requests_total", {"route": r, "method": m, "status": s}, v)
        for r, m, s, v in counts
    ])


def status(worker: str, *families: Family, role: str = "http", pid: int = 1) -> WorkerStatus:
    return WorkerStatus(role, worker, pid, True, 0, list(families))


def gauge(value: float) -> Family:
    return Family("pylon_connections", "h", "gauge", [Sample("pylon_connections", {}, value)])


def values(families: list[Family], name: str) -> dict[tuple[tuple[str, str], ...], float]:
    return {
        tuple(sorted(s.labels.items())): s.value
        for f in families for s in f.samples if s.name == name
    }


def test_snapshot_names_counters_as_readers_see_them() -> None:
    metrics.HTTP_REQUESTS.labels("/x", "GET", "200").inc()
    names = {family.name for family in snapshot()}
    assert "pylon_http_requests_total" in names
    samples = [s.name for family in snapshot() for s in family.samples]
    assert not [name for name in samples if name.endswith("_created")]
    assert "pylon_wal_size_bytes" not in names
    assert {"pylon_wal_size_bytes", "pylon_build_info"} <= {f.name for f in supervisor_snapshot()}


UNITS = ("_seconds", "_bytes")
# What a number without a unit counts, in the plural, or a state of 0 and 1.
COUNTED = re.compile(
    r"_(in_flight|waiting|length|seq|ready|wanted|running|writable|low|info|generation|\w+s)$"
)


def test_names_follow_the_practice_of_prometheus() -> None:
    for registry in (WORKER, SUPERVISOR):
        for metric in registry.collect():
            name, kind = metric.name, metric.type
            assert name.startswith("pylon_") and metric.documentation.endswith("."), name
            assert not re.search(r"_(total|ms|msecs|secs|kb|mb|count|bucket|sum)$", name), name
            if kind == "histogram":
                assert name.endswith(UNITS) or name == "pylon_group_commit_size", name
            elif kind == "gauge":
                assert name.endswith(UNITS) or COUNTED.search(name) or "_deferred" in name, name
            if name.endswith("_seconds") and kind == "histogram":
                assert re.search(r"_(duration|wait|lateness)_seconds$", name), name


def test_counters_sum_over_a_role_and_gauges_stay_apart() -> None:
    merged = Merged()
    merged.update(status("1", requests(("/a", "GET", "200", 3)), gauge(5)))
    merged.update(status("2", requests(("/a", "GET", "200", 4)), gauge(6)))
    families = merged.families()
    [total] = values(families, "pylon_http_requests_total").values()
    assert total == 7
    assert values(families, "pylon_connections") == {
        (("role", "http"), ("worker", "1")): 5, (("role", "http"), ("worker", "2")): 6,
    }


def test_a_dead_worker_keeps_its_counts_and_loses_its_gauges() -> None:
    merged = Merged()
    merged.update(status("1", requests(("/a", "GET", "200", 3)), gauge(5)))
    merged.forget("http", "1")
    merged.forget("http", "1")
    assert list(values(merged.families(), "pylon_http_requests_total").values()) == [3]
    assert values(merged.families(), "pylon_connections") == {}
    merged.update(status("1", requests(("/a", "GET", "200", 1)), pid=2))
    merged.update(status("1", requests(("/a", "GET", "200", 2)), pid=3))  # a new one, unannounced
    assert list(values(merged.families(), "pylon_http_requests_total").values()) == [6]


@given(st.lists(st.tuples(st.sampled_from("123"), st.integers(0, 5), st.booleans()), max_size=30))
def test_totals_never_go_back(steps: list[tuple[str, int, bool]]) -> None:
    merged, counts, pids, before, expected = Merged(), dict.fromkeys("123", 0), [1], 0.0, 0
    alive: dict[str, int] = {}
    for worker, increment, dies in steps:
        if worker not in alive:
            pids.append(pids[-1] + 1)
            alive[worker], counts[worker] = pids[-1], 0
        counts[worker] += increment
        expected += increment
        merged.update(status(
            worker, requests(("/a", "GET", "200", counts[worker])), pid=alive[worker]))
        if dies:
            del alive[worker]
            merged.forget("http", worker)
        total = sum(values(merged.families(), "pylon_http_requests_total").values())
        assert total == expected
        assert total >= before
        before = total


def test_histograms_merge_by_bucket() -> None:
    def family(low: float, count: float) -> Family:
        name = "pylon_commit_duration_seconds"
        return Family(name, "h", "histogram", [
            Sample(f"{name}_bucket", {"le": "0.1"}, low),
            Sample(f"{name}_bucket", {"le": "+Inf"}, count),
            Sample(f"{name}_count", {}, count), Sample(f"{name}_sum", {}, count / 2),
        ])

    merged = Merged()
    merged.update(status("1", family(1, 2)))
    merged.update(status("2", family(3, 3)))
    [out] = merged.families()
    assert out.kind == "histogram"
    assert [(s.name.rpartition("_")[2], s.value) for s in out.samples] == [
        ("bucket", 4), ("bucket", 5), ("count", 5), ("sum", 2.5),
    ]


def test_the_supervisors_own_samples_stand_beside_the_workers() -> None:
    bus = Family("pylon_bus_messages_total", "h", "counter",
                 [Sample("pylon_bus_messages_total", {"channel": "status"}, 1)])
    merged = Merged()
    merged.update(status("1", bus))
    uptime = Family("pylon_uptime_seconds", "h", "gauge", [Sample("pylon_uptime_seconds", {}, 9)])
    families = merged.families([bus, uptime])
    assert {labels[1] for labels in values(families, "pylon_bus_messages_total")} == {
        ("role", "http"), ("role", "supervisor"),
    }
    assert values(families, "pylon_uptime_seconds") == {(): 9}


def test_text_page_begins_with_the_specs_families_and_parses() -> None:
    uptime = Family("pylon_uptime_seconds", "Seconds.", "gauge",
                    [Sample("pylon_uptime_seconds", {}, 12)])
    page = render_text([
        gauge(1.5), requests(("/a", "GET", "200", 2), ("/a", "POST", "409", 1)), uptime,
    ])
    assert page.endswith("\n")
    types = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert types == [
        "pylon_uptime_seconds", "pylon_http_requests_total", "pylon_http_requests_ok_total",
        "pylon_http_requests_errors_total", "pylon_http_requests_by_method", "pylon_connections",
        "pylon_http_requests_by_method_total",
    ]
    # The spec's name has no `_total`; as a counter, promtool would refuse it.
    assert "# TYPE pylon_http_requests_by_method untyped" in page.splitlines()
    assert page_values(page, "pylon_uptime_seconds") == [12]
    assert page_values(page, "pylon_http_requests_ok_total") == [2]
    assert page_values(page, "pylon_http_requests_errors_total") == [1]
    for name in ("pylon_http_requests_by_method", "pylon_http_requests_by_method_total"):
        assert [page_values(page, name, method=method) for method in METHODS] == [
            [2], [1], [0], [0], [0],
        ]


def test_text_escapes_labels_and_renders_odd_numbers() -> None:
    odd = Family("pylon_x", 'a "help"\nline', "gauge", [
        Sample("pylon_x", {"l": 'a"b\\c\nd'}, float("inf")),
        Sample("pylon_x", {"l": "nan"}, float("nan")),
        Sample("pylon_x", {"l": "low"}, float("-inf")),
    ])
    page = render_text([odd])
    assert '# HELP pylon_x a "help"\\nline' in page
    assert 'pylon_x{l="a\\"b\\\\c\\nd"} +Inf' in page
    assert 'pylon_x{l="nan"} NaN' in page
    assert 'pylon_x{l="low"} -Inf' in page


def test_openmetrics_page_has_each_family_once() -> None:
    families = [gauge(1.5), requests(("/a", "GET", "200", 2)), *snapshot(), *supervisor_snapshot()]
    page = render_openmetrics(families)
    assert page.endswith("# EOF\n")
    read = [family.name for family in strict_families(page)]
    assert len(read) == len(set(read))
    assert {"pylon_connections", "pylon_http_requests", "pylon_http_requests_by_method"} <= {*read}


def test_json_page() -> None:
    families = [requests(("/a", "GET", "200", 6), ("/b", "POST", "500", 1),
                         ("/b", "OPTIONS", "204", 2))]
    assert render_json(families, 120.9) == {
        "uptime_secs": 120,
        "requests": {"total": 9, "ok": 8, "error": 1},
        "methods": {"GET": 6, "POST": 1, "PATCH": 0, "DELETE": 0},
    }
    assert render_json([], 0)["requests"] == {"total": 0, "ok": 0, "error": 0}


def test_a_snapshot_of_changes_has_gauges_and_what_was_counted_since() -> None:
    metrics.CONNECTIONS_CLOSED.labels("change").inc()
    metrics.LIVE_EVALUATION.observe(0.02)
    take_changes()
    metrics.CONNECTIONS_CLOSED.labels("change").inc()
    metrics.WRITES_IN_FLIGHT.set_function(lambda: 3)
    changes = take_changes()
    assert {f.name for f in changes if f.kind != "gauge"} == {"pylon_connections_closed_total"}
    assert values(changes, "pylon_connections_closed_total")[(("code", "change"),)] == 2
    assert values(changes, "pylon_writes_in_flight") == {(): 3}
    metrics.LIVE_EVALUATION.observe(0.02)
    whole = {f.name: f for f in snapshot()}
    assert [f for f in take_changes() if f.kind != "gauge"] == [
        whole["pylon_live_query_evaluation_duration_seconds"]
    ]


def test_changes_of_a_lost_heartbeat_are_sent_again(tmp_path: Path) -> None:
    take_changes()
    metrics.CONNECTIONS_CLOSED.labels("lost").inc()
    sender = StatusSender(Runtime(tmp_path))  # nobody listens: what the queue cannot hold is lost
    sent = take_changes()
    for _ in range(limits.BUS_STATUS_HWM + 1):
        sender.send(status("1", *sent))
    sender.close()
    assert values(take_changes(), "pylon_connections_closed_total")[(("code", "lost"),)] == 1


def test_merging_changes_is_merging_snapshots() -> None:
    merged = Merged()
    merged.update(status("1", requests(("/a", "GET", "200", 3)), gauge(5)))
    merged.update(status("1", gauge(6)))
    merged.update(status("1", requests(("/a", "GET", "200", 4))))
    assert list(values(merged.families(), "pylon_http_requests_total").values()) == [4]
    assert list(values(merged.families(), "pylon_connections").values()) == [6]
    merged.forget("http", "1")
    assert list(values(merged.families(), "pylon_http_requests_total").values()) == [4]


FORKED = """
import os
from prometheus_client import CollectorRegistry, Counter
from pylon import limits, metrics
child = metrics.CONNECTIONS_CLOSED.labels("1000")
child.inc(5)
metrics.LIVE_EVALUATION.observe(1)
metrics.take_changes()
foreign = Counter("app_things_total", "Of the app.", registry=CollectorRegistry())
foreign.inc()
if os.fork() == 0:
    metrics.reset()
    child.inc()
    families = metrics.take_changes()
    assert {f.name for f in families} == {f.name for f in metrics.snapshot()}
    samples = {(s.name, *s.labels.values()): s.value for f in families for s in f.samples}
    assert samples["pylon_connections_closed_total", "1000"] == 1
    assert samples["pylon_live_query_evaluation_duration_seconds_count",] == 0
    assert samples["pylon_live_query_evaluation_duration_seconds_sum",] == 0
    assert foreign.collect()[0].samples[0].value == 1
    os._exit(0)
assert os.wait()[1] == 0
assert child.collect()[0].samples[0].value == 5
"""


@pytest.mark.usefixtures("processes")
def test_a_forked_process_counts_from_zero() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_counting_from_threads_loses_nothing() -> None:
    counter = metrics.CONNECTIONS_CLOSED.labels("test")
    threads = [threading.Thread(target=lambda: [counter.inc() for _ in range(1_000)])
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = values(snapshot(), "pylon_connections_closed_total")
    assert found[(("code", "test"),)] == 4_000


def test_processes_have_the_standard_metrics_each_for_itself() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"x")
        child.stdin.flush()
        assert child.stdout.read(1) == b"x"  # it runs: before, it has no memory of its own
        families = process_families([("supervisor", "", os.getpid()), ("ws", "1", child.pid)])
        child.kill()
    names = {family.name for family in families}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds",
            "process_start_time_seconds"} <= names
    resident = values(families, "process_resident_memory_bytes")
    own = resident[(("role", "supervisor"), ("worker", ""))]
    assert own > resident[(("role", "ws"), ("worker", "1"))] > 0
    page = render_text(families)
    assert "process_cpu_seconds" in page_families(page)
    assert process_families([("ws", "1", child.pid)]) == []
