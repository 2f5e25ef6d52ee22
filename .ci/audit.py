"""Audit of the installed packages: `pip-audit`, and what it could not tell.

    .venv/bin/python .ci/audit.py

Exit code 1 if a package has a known vulnerability that `EXPLAINED` does not name. Where the
service of vulnerabilities cannot be reached, or knows none of the packages, it says so: the audit
is then skipped, and not passed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

# By id of a vulnerability: why it does not concern Pylon, and until when.
EXPLAINED: dict[str, str] = {}
OWN = ("pylon-server", "pylon-client")  # they are in no registry
_WAIT_S = 180


def judge(report: dict[str, Any], explained: dict[str, str]) -> tuple[list[str], int]:
    """Return the lines to print, and the exit code.

    Args:
        report: the JSON of pip-audit.
    """
    packages = [package for package in report["dependencies"] if package["name"] not in OWN]
    unknown = [package for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        reason = unknown[0]["skip_reason"] if unknown else "nothing is installed"
        return [f"pip-audit: SKIPPED: no package could be audited, as the first one: {reason}"], 0
    lines, code = [], 0
    for package in packages:
        for found in package.get("vulns", ()):
            names = [found["id"], *found.get("aliases", ())]
            why = next((explained[name] for name in names if name in explained), None)
            text = f"{package['name']} {package['version']}: {', '.join(names)}"
            fixed = ", ".join(found.get("fix_versions", ())) or "no version"
            lines.append(f"pip-audit: {text}; fixed in {fixed}" + (f"; {why}" if why else ""))
            code = code if why else 1
    lines += [f"pip-audit: not audited: {package['skip_reason']}" for package in unknown]
    audited = len(packages) - len(unknown)
    return [*lines, f"pip-audit: {audited} of {len(packages)} packages audited"], code


def main() -> int:
    """Run pip-audit and print what it found."""
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json",
               "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_WAIT_S)
    except subprocess.TimeoutExpired:
        print(f"pip-audit: SKIPPED: no answer within {_WAIT_S} s")
        return 0
    try:
        report = json.loads(done.stdout)
    except ValueError:
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        print(f"pip-audit: SKIPPED: {reason}")
        return 0
    lines, code = judge(report, EXPLAINED)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
