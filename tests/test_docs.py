"""What the documentation says is true of the code: settings, limits, links, verbs."""

from __future__ import annotations

import fnmatch
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from pylon import limits, rates
from pylon.cli.main import VERBS
from pylon.config import load as load_config
from pylon.manifest import keys
from pylon.manifest.model import FieldType
from pylon.setting_values import SIGN_IN_RATES
from pylon.settings import SETTINGS
from workers.identity import rates as sign_in_rates

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")])


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_settings_table_is_current() -> None:
    readme = (ROOT / "README.md").read_text()
    wanted = load(ROOT / "docs" / "settings_table.py").with_table(readme)
    assert readme == wanted, "run: python docs/settings_table.py"


def test_the_table_of_what_changed_settings_need_is_current() -> None:
    page = (ROOT / "docs" / "operations" / "upgrade.md").read_text()
    wanted = load(ROOT / "docs" / "settings_table.py").with_changes(page)
    assert page == wanted, "run: python docs/settings_table.py"


def test_settings_that_the_supervisor_reads_need_more_than_new_workers() -> None:
    """Else a reload would leave the supervisor with the value from before."""
    change_by_field = {setting.field: setting.change for setting in SETTINGS}
    # Used by the workers, or with the new value at each reload.
    of_workers = {"drain_spread_s"}
    read = {
        field for path in (ROOT / "supervisor").glob("*.py")
        for field in re.findall(r"\bconfig\.(\w+)", path.read_text())
    }
    assert {"change_log_retain", "drain_s", "db_path"} <= read
    assert [
        field for field in sorted(read)
        if change_by_field.get(field) == "workers" and field not in of_workers
    ] == []


def test_the_tables_of_metrics_are_current() -> None:
    page = (ROOT / "docs" / "operations" / "metrics.md").read_text()
    wanted = load(ROOT / "docs" / "metrics_page.py").with_tables(page)
    assert page == wanted, "run: python docs/metrics_page.py"


def test_every_limit_is_in_the_limits_page_and_no_other() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    named = set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))
    assert named == {name for name in vars(limits) if name.isupper()}


def test_every_rate_is_in_the_limits_page_and_no_other() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    (section,) = re.findall(r"^## Rates$(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE))
    fixed = {value.name for value in vars(rates).values() if isinstance(value, rates.Rate)}
    settable = {
        function(load_config({}).config).name for function in vars(rates).values()
        if inspect.isfunction(function) and inspect.signature(function).return_annotation == "Rate"
    }
    assert named == fixed | settable


def test_every_rate_of_sign_in_is_in_the_limits_page_and_no_other() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    (section,) = re.findall(r"^### Rates of sign-in$(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE))
    fixed = {each.name for each in vars(sign_in_rates).values() if isinstance(each, rates.Rate)}
    assert fixed == set(SIGN_IN_RATES)  # PYLON_AUTH_RATE_LIMITS takes these
    assert named == fixed | {"login_ip", "login_account"}


@pytest.mark.parametrize(
    ("title", "shapes"),
    [
        ("The top level", [keys.MANIFEST]), ("Rate limits", [keys.RATE_LIMIT]),
        ("Entities", [keys.ENTITY]), ("Indexes", [keys.INDEX]),
        ("Relations", [keys.RELATION]), ("Search", [keys.SEARCH]), ("Policies", [keys.POLICY]),
        ("Queries and actions", [keys.OPERATION]), ("Routes", [keys.ROUTE]),
        ("Sign-in", [keys.AUTH, *keys.AUTH.optional.values()]),
        ("Fields", [keys.FIELD]),
    ],
)
def test_every_key_of_a_manifest_is_in_its_page_and_no_other(
    title: str, shapes: list[keys.Shape]
) -> None:
    page = (ROOT / "docs" / "manifest.md").read_text() + "\n## "
    (section,) = re.findall(rf"^## {title}$(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"^\| `([A-Za-z_()]+)` \|", section, re.MULTILINE))
    types = {"id(Entity)" if kind.value == "id" else kind.value for kind in FieldType}
    objects = [shape for shape in shapes if isinstance(shape, keys.Object)]
    known = {key for shape in objects for key in (*shape.required, *shape.optional)}
    assert named == known | (types if title == "Fields" else set())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


def test_every_test_of_the_promise_table_is_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    table = text.partition("## Promises")[2].partition("\n## ")[0]
    named = re.findall(r"`(?:attacks/)?(test_[a-z0-9_*]+)(?:\.py)?`", table)
    assert len(named) > 20
    modules = [path.stem for path in (ROOT / "tests").rglob("test_*.py")]
    missing = [name for name in named if not fnmatch.filter(modules, name)]
    assert missing == []


def test_every_verb_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [name for name in VERBS if f"`pylonctl {name}" not in readme]
    assert missing == ["version"]


def test_every_target_of_the_makefile_is_described_in_it() -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    described = set(re.findall(r"^# make ([a-z-]+) ", text, re.MULTILINE))
    assert set(phony.split()) == described
