"""App: the settings, manifest, compiled policies, codecs, clock and ids of a process.

Every process that serves clients builds one at its start (`load_app`, or `build_app`) and passes it
to its parts. It does not change afterwards, so all greenlets may share it.

Invariant: each entity of the manifest has a rule set, a codec and defaults, and no other entity has
any.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from pylon.clock import Clock, RandomSource, SystemClock, SystemRandom
from pylon.config import Config
from pylon.ids import RowIds
from pylon.manifest.model import Manifest
from pylon.manifest.places import read_places
from pylon.manifest_loader import load_manifest
from pylon.policy.rules import RuleSet, compile_rules
from pylon.values import EntityCodec, FieldDefaults


class App(msgspec.Struct, frozen=True):
    """One app, shared by all parts of a worker process."""

    config: Config
    manifest: Manifest
    rules: RuleSet
    codecs: dict[str, EntityCodec]
    defaults: dict[str, FieldDefaults]
    clock: Clock
    random: RandomSource
    ids: RowIds


def load_app(
    config: Config,
    manifest_path: Path,
    *,
    clock: Clock | None = None,
    random: RandomSource | None = None,
) -> App:
    """Read the manifest and build the app.

    Args:
        manifest_path: the file, or a copy of it; messages name the file of the settings.
        clock, random: replace those of the machine (tests).

    Raises:
        ManifestInvalid: with every diagnostic, policies included.
    """
    manifest = load_manifest(
        manifest_path, name=config.manifest, places=read_places(manifest_path, config.manifest)
    )
    return build_app(config, manifest, clock=clock, random=random)


def build_app(
    config: Config,
    manifest: Manifest,
    *,
    clock: Clock | None = None,
    random: RandomSource | None = None,
) -> App:
    """Build the app from a manifest that is already in memory."""
    clock = clock if clock is not None else SystemClock()
    random = random if random is not None else SystemRandom()
    return App(
        config=config,
        manifest=manifest,
        rules=compile_rules(manifest, explain=config.dev_mode),
        codecs={e.name: EntityCodec(e, config.row_max_bytes) for e in manifest.entities},
        defaults={e.name: FieldDefaults(e, clock, random) for e in manifest.entities},
        clock=clock,
        random=random,
        ids=RowIds(clock, random),
    )
