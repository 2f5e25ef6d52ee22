"""The alert rules and the dashboard of `deploy/`: valid, tested, and each alert with a runbook."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.dashboards import (
    CONFIG,
    DASHBOARD,
    ROOT,
    RULES,
    RULES_TEST,
    alerts,
    known_metrics,
    metrics_of,
    panels,
    queries,
)

Program = Callable[[str, str], str]
STANDARD = {
    "process_open_fds", "process_max_fds", "process_resident_memory_bytes",
    "process_cpu_seconds_total",
}


def run_promtool(program: Program, *args: object) -> None:
    promtool = program("promtool", "prometheus")
    done = subprocess.run(
        [promtool, *map(str, args)], text=True, capture_output=True, check=False,
        cwd=RULES.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def heading_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in page.read_text().splitlines() if line.startswith("#")
    }


def test_rules_fire_and_stay_quiet_as_their_tests_say(program: Program) -> None:
    run_promtool(program, "check", "rules", RULES)
    run_promtool(program, "test", "rules", RULES_TEST)


def test_every_alert_has_a_test() -> None:
    tested = {case.get("name") for case in yaml.safe_load(RULES_TEST.read_text())["tests"]}
    assert {alert["alert"] for alert in alerts()} == tested - {"a healthy server raises no alert"}


def test_configuration_of_the_guide_is_valid(program: Program, tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    assert "deploy/prometheus/prometheus.yml" in guide
    (tmp_path / "token").write_text("x")
    (tmp_path / "prometheus.yml").write_text(
        CONFIG.read_text().replace("/etc/prometheus/pylon.rules.yml", str(RULES))
        .replace("/etc/prometheus/pylon.token", str(tmp_path / "token"))
    )
    run_promtool(program, "check", "config", tmp_path / "prometheus.yml")


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_has_a_severity_a_summary_and_a_runbook_that_exists(
    alert: dict[str, dict[str, str]],
) -> None:
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"]["summary"].endswith(".")
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert page == "docs/operations/incidents.md"
    assert anchor in heading_anchors(ROOT / page)


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    expressions = [*(alert["expr"] for alert in alerts()), *queries()]
    named = {name for expression in expressions for name in metrics_of(expression)}
    assert len(named) > 50
    assert named <= known_metrics() | STANDARD


def test_panels_are_apart_and_have_titles_and_units() -> None:
    document = json.loads(DASHBOARD.read_text())
    assert {v["name"] for v in document["templating"]["list"]} == {
        "datasource", "job", "instance", "role", "quantile"}
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"])
                 for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    for panel in panels():
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
