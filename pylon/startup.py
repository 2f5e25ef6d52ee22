"""Start checks: find every problem that a start refuses, in the order of the start.

`load_checked` begins each start: it checks settings and manifest, and raises the first problem.
`find_problems` finds all problems that could stop a start, without changing anything;
`pylonctl check-config` prints them.

Invariants: both use the same checks. A problem is one `StartRefused`, whose text names the
setting or file, the value and the remedy. Called by `pylon.cli` and the supervisor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pylon.app_manifest import app_file, declares_manifest, document_text, read_app_manifest
from pylon.auth.cookies import cookie_name
from pylon.auth.disposable_domains import disposable_domains
from pylon.auth.jwt_issuers import read_issuers
from pylon.auth.password_rules import password_rules
from pylon.auth.secret_key import probe_problem, read_keys
from pylon.bus.runtime import refuse_unfit_runtime_dir
from pylon.config import Config, Loaded
from pylon.data_dir import data_dir_problems
from pylon.errors import PylonError, StartRefused
from pylon.mail.templates import load_templates
from pylon.manifest.model import Manifest
from pylon.realtime.app_module import try_app_module
from pylon.seed_file import refuse_bad_seed
from pylon.setting_checks import cookie_name_problems, unsafe_origins, unsafe_settings
from pylon.storage.factory import open_store


def load_checked(loaded: Loaded) -> Manifest:
    """Check settings and manifest. Return the manifest.

    Raises:
        StartRefused: the first problem.
    """
    for text in (*loaded.refusals, *unsafe_settings(loaded.config)):
        raise StartRefused(text)
    manifest = read_manifest(loaded.config)
    for text in manifest_problems(loaded.config, manifest):
        raise StartRefused(text)
    read_keys(loaded.config)
    password_rules(loaded.config, manifest)
    disposable_domains(loaded.config)
    read_issuers(loaded.config)
    load_templates(loaded.config)
    return manifest


def read_manifest(config: Config) -> Manifest:
    """Return the manifest. In dev mode an unknown key is an error.

    Raises:
        StartRefused: the manifest has errors.
    """
    return read_app_manifest(config, strict=config.dev_mode)


def manifest_problems(config: Config, manifest: Manifest) -> Iterator[str]:
    """Yield the parts of a valid manifest that are unsafe with these settings."""
    if config.cookie_name is None:
        yield from cookie_name_problems(
            config, cookie_name(manifest.name),
            f'the name "{manifest.name}" of {app_file(config)} makes the session cookie',
        )
    if config.dev_mode:
        return
    for name in unsafe_origins(manifest.auth.trusted_origins):
        yield (
            f'{app_file(config)}: auth.trusted_origins with "{name}" is refused in production '
            "mode (any page could send writes with a visitor's cookie): name the origins"
        )


def start_warnings(loaded: Loaded, manifest: Manifest | None) -> list[str]:
    """Return warnings for the operator, which do not stop a start."""
    return [
        *loaded.warnings, *(d.render() for d in (manifest.warnings if manifest else ())),
        *_served_files(loaded.config), *_other_manifest(loaded.config, manifest),
    ]


def _other_manifest(config: Config, manifest: Manifest | None) -> Iterator[str]:
    """Yield a warning if PYLON_MANIFEST is another manifest than the one that PYLON_APP declares.
    """
    if manifest is None or not declares_manifest(config.app):
        return
    try:
        text = Path(config.manifest).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return
    if text != document_text(manifest.source):
        yield (
            f"{config.manifest} differs from what {config.app} declares, which is used: remove it, "
            "or run pylonctl manifest build"
        )


def _served_files(config: Config) -> Iterator[str]:
    """Yield a warning for each file of the app that PYLON_STATIC_DIR would serve to everybody."""
    if config.static_dir is None:
        return
    root = os.path.realpath(config.static_dir)
    for setting, name in (
        ("PYLON_MANIFEST", config.manifest), ("PYLON_APP", config.app), ("PYLON_SEED", config.seed)
    ):
        if name is not None and Path(os.path.realpath(name)).is_relative_to(root):
            yield f"{setting} is {name}, in PYLON_STATIC_DIR: everybody can read it under /app/"


def find_problems(
    loaded: Loaded, environ: Mapping[str, str], manifest: Manifest | StartRefused
) -> Iterator[StartRefused]:
    """Yield every problem, except those of ports, of single values of settings and of descriptors.

    Args:
        manifest: the manifest, or the reason why it cannot be read.
    """
    config = loaded.config
    for text in (*loaded.refusals, *unsafe_settings(config)):
        yield StartRefused(text)
    if isinstance(manifest, StartRefused):
        yield manifest
    else:
        for text in manifest_problems(config, manifest):
            yield StartRefused(text)
        try:
            password_rules(config, manifest)
            disposable_domains(config)
            read_issuers(config)
            load_templates(config)
        except StartRefused as ex:
            yield ex
    is_reported = isinstance(manifest, StartRefused) and declares_manifest(config.app)
    is_missing = config.app is not None and not Path(config.app).is_file()  # reported already
    if not is_reported and not is_missing:
        try:
            try_app_module(config)
        except StartRefused as ex:
            yield ex
    try:
        refuse_unfit_runtime_dir(config, environ.get("RUNTIME_DIRECTORY"))
    except StartRefused as ex:
        yield ex
    unusable = data_dir_problems(config)
    for text in unusable:
        yield StartRefused(text)
    if not unusable and isinstance(manifest, Manifest):
        yield from _database_problems(config, manifest)


def _database_problems(config: Config, manifest: Manifest) -> Iterator[StartRefused]:
    try:
        store = open_store(config)
        store.schema.refuse_unreachable(manifest)
        refuse_bad_seed(config, manifest)
        keys = read_keys(config)
        problem = None if keys is None or config.in_memory else probe_problem(
            keys, store.key_probe(), config
        )
        if problem is not None:
            yield problem
    except StartRefused as ex:
        yield ex
    except PylonError as ex:
        yield StartRefused(ex.message)
