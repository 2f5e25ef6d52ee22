"""tests.support.ports: no two test processes get the same ports."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import reserve_base_port

ROOT = Path(__file__).parents[1]
RESERVE = (
    "import sys\nfrom unittest import mock\nfrom tests.support.ports import reserve_base_port\n"
    "with mock.patch('os.getpid', return_value=int(sys.argv[1])):\n"  # the same beginning
    "    print(*[reserve_base_port() for _ in range(5)], flush=True)\n"
    "sys.stdin.read()\n"
)


def test_each_block_is_given_once() -> None:
    ports = sorted(reserve_base_port() for _ in range(10))
    assert all(after - before >= 4 for before, after in itertools.pairwise(ports))


@pytest.mark.usefixtures("processes")
def test_two_processes_get_different_ports() -> None:
    others = [
        subprocess.Popen(
            [sys.executable, "-c", RESERVE, "1"], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    found = [other.stdout.readline().split() for other in others if other.stdout is not None]
    for other in others:
        other.communicate()
    assert len(set(found[0]) | set(found[1])) == 10
