"""Installations: every run-time dependency has a wheel, so that no compiler is used.

pip resolves the dependencies of setup.cfg for each interpreter and machine that the README
names, with `--only-binary=:all:`, and downloads metadata only. `.ci/fresh_debian` installs for
real, on a Debian without a compiler.
"""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
GLIBC = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")  # Debian 12 has 2.36
UNREACHABLE = ("Failed to establish a new connection", "Temporary failure in name resolution")


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def dependencies(python: str) -> list[str]:
    """The requirements that hold for a Python; pip would judge their markers by its own."""
    lines = setup_cfg()["options"]["install_requires"].splitlines()
    found = [Requirement(line) for line in lines if line]
    return [
        f"{each.name}{'[' + ','.join(each.extras) + ']' if each.extras else ''}{each.specifier}"
        for each in found if each.marker is None or each.marker.evaluate({"python_version": python})
    ]


def resolve(python: str, machine: str, folder: Path) -> subprocess.CompletedProcess[str]:
    platforms = [f"--platform={glibc}_{machine}" for glibc in GLIBC]
    return subprocess.run(
        [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run",
            "--only-binary=:all:", "--implementation=cp", f"--python-version={python}",
            *platforms, f"--target={folder / f'{python}-{machine}'}", *dependencies(python),
        ],
        capture_output=True, text=True, timeout=110, check=False,
    )


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("processes")
def test_every_dependency_is_a_wheel_for_every_python_and_machine(tmp_path: Path) -> None:
    wanted = [(python, machine) for python in PYTHONS for machine in MACHINES]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda pair: resolve(*pair, tmp_path), wanted))
    if "PYLON_CI" not in os.environ and any(
        reason in each.stderr for each in done for reason in UNREACHABLE
    ):
        pytest.skip("the package index cannot be reached")
    failed = {
        pair: each.stderr.strip().splitlines()[-3:]
        for pair, each in zip(wanted, done, strict=True) if each.returncode
    }
    assert failed == {}
    for each in done:
        assert "Would install" in each.stdout


def test_the_pythons_that_are_named_are_the_pythons_that_are_tried() -> None:
    named = [
        line.rpartition(" ")[2] for line in setup_cfg()["metadata"]["classifiers"].splitlines()
        if line.startswith("Programming Language :: Python :: 3.")
    ]
    assert tuple(named) == PYTHONS


def test_nothing_imports_a_package_that_is_not_declared() -> None:
    """The parser that needed a compiler must not come back by another way than setup.cfg."""
    declared = {line.partition("[")[0].partition(">")[0] for line in dependencies(PYTHONS[0])}
    assert "gunicorn_h1c" not in declared
    sources = [*ROOT.glob("workers/**/*.py"), *ROOT.glob("pylon/**/*.py")]
    assert not [path for path in sources if "gunicorn_h1c" in path.read_text()]
