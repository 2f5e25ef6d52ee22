"""Plan of an installation: the folders and files that it wants, with their texts.

Invariants: no plan changes the machine. The text of a file depends on the options only, except the
tokens of a new env file. Called by `pylon.install.apply`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from pylon.clock import SystemRandom
from pylon.errors import InstallRefused
from pylon.install.options import (
    CADDY,
    DATA_FOLDERS,
    ENV_FILE,
    HIDDEN_FOLDERS,
    MANIFEST,
    NGINX,
    PUBLIC_FOLDER,
    SITES,
    UNIT_FILES,
    UNITS_FOLDER,
    InstallOptions,
)

_PROGRAM: Final = "/opt/pylon/bin/pylonctl"
_DOMAIN: Final = "api.example.com"
_ORIGIN: Final = "https://app.example.com"
_TOKENS: Final = ("PYLON_ADMIN_TOKEN", "PYLON_METRICS_TOKEN")
_TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class PlannedFolder:
    """A folder. `owned`: it belongs to the service's user, and not to root."""

    path: str
    mode: int
    owned: bool = False


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file and its text. `precious`: it holds the operator's own choices, so an existing one
    stays, and only `--delete-data` removes it. `shared`: the service's group may read it."""

    path: str
    text: str
    mode: int = 0o644
    precious: bool = False
    shared: bool = False


def planned_folders() -> list[PlannedFolder]:
    """Return the folders of an installation."""
    return [
        PlannedFolder("etc/pylon", 0o755),
        *(PlannedFolder(path, 0o700, owned=True) for path in DATA_FOLDERS),
    ]


def planned_files(options: InstallOptions) -> list[PlannedFile]:
    """Return the files of an installation, in the order in which they are written.

    Raises:
        InstallRefused: an option is missing, the manifest cannot be read, or the service could not
            see the app.
    """
    files = [
        PlannedFile(f"{UNITS_FOLDER}/{name}", _unit_text(name, options)) for name in UNIT_FILES
    ]
    if not options.place(ENV_FILE).exists():
        files.append(PlannedFile(ENV_FILE, _env_text(options), 0o640, precious=True, shared=True))
    if options.manifest is not None:
        try:
            text = options.manifest.read_text()
        except (OSError, UnicodeDecodeError) as ex:
            raise InstallRefused(f"{options.manifest} cannot be read: {ex}") from None
        files.append(PlannedFile(MANIFEST, text, precious=True))
    files += [PlannedFile(path, text) for path, text in options.pages.items()]
    if options.proxy in SITES:
        files.append(PlannedFile(SITES[options.proxy], _site_text(options)))
    return files


def shipped_text(name: str) -> str:
    """Return a file as it is shipped."""
    return (resources.files("pylon.install") / "files" / name).read_text()


def _unit_text(name: str, options: InstallOptions) -> str:
    text = shipped_text(name).replace(_PROGRAM, str(options.program))
    text = text.replace("\nUser=pylon\n", f"\nUser={options.user}\n")
    return text.replace("\nGroup=pylon\n", f"\nGroup={options.user}\n")


def _env_text(options: InstallOptions) -> str:
    domain = _require_domain(options)
    text = shipped_text("pylon.env").replace(_DOMAIN, domain)
    text = text.replace(_ORIGIN, options.origin or f"https://{domain}")
    if options.app is not None:
        text = text.replace(f"PYLON_MANIFEST=/{MANIFEST}\n", _app_lines(options.app))
    for name in _TOKENS:
        text = text.replace(f"{name}=\n", f"{name}={SystemRandom().token_hex(_TOKEN_BYTES)}\n")
    return text


def _app_lines(app: Path) -> str:
    app = app.resolve()
    for folder in HIDDEN_FOLDERS:
        if app.is_relative_to(folder):
            raise InstallRefused(
                f"The service does not see {folder}, where {app} is",
                hint="put the app's folder below /opt or /srv, readable for the service's user",
            )
    lines = f"PYLON_APP={app}\n"
    if (app.parent / PUBLIC_FOLDER).is_dir():
        lines += f"PYLON_STATIC_DIR={app.parent / PUBLIC_FOLDER}\n"
    return lines


def _site_text(options: InstallOptions) -> str:
    domain = _require_domain(options)
    if options.proxy == CADDY:
        return shipped_text("pylon.caddy").replace(_DOMAIN, domain)
    assert options.proxy == NGINX
    text = shipped_text("pylon.conf").replace(_DOMAIN, domain)
    return text.replace("    server_name _;\n", f"    server_name {domain};\n")


def _require_domain(options: InstallOptions) -> str:
    if options.domain is None:
        raise InstallRefused(
            "The name that clients reach the server by is missing",
            hint="--domain api.example.com",
        )
    return options.domain
