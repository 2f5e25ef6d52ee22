"""The app as a worker holds it: settings, manifest, compiled policies, codecs, clock and ids.

Every process that serves clients builds one at start with `load_app` and passes it on; nothing
in it changes afterwards, so it may be shared by all greenlets.

Invariant: there is a rule set and a codec for each entity of the manifest, and for no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pylon.clock import Clock, RandomSource, SystemClock, SystemRandom
from pylon.config import Config
from pylon.ids import RowIds
from pylon.manifest.model import Manifest
from pylon.manifest_loader import load_manifest
from pylon.policy.rules import RuleSet, compile_rules
from pylon.values import EntityCodec


@dataclass(frozen=True, slots=True)
class App:
    """One app, as all parts of a worker process see it."""

    config: Config
    manifest: Manifest
    rules: RuleSet
    codecs: dict[str, EntityCodec]
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
    """Read the manifest and build everything that follows from it.

    Args:
        clock, random: the machine's own unless given (tests).

    Raises:
        ManifestInvalid: with every diagnostic, policies included.
    """
    return build_app(config, load_manifest(manifest_path), clock=clock, random=random)


def build_app(
    config: Config,
    manifest: Manifest,
    *,
    clock: Clock | None = None,
    random: RandomSource | None = None,
) -> App:
    """The same from a manifest that is already in memory."""
    clock = clock if clock is not None else SystemClock()
    random = random if random is not None else SystemRandom()
    return App(
        config=config,
        manifest=manifest,
        rules=compile_rules(manifest, explain=config.dev_mode),
        codecs={e.name: EntityCodec(e, config.row_max_bytes) for e in manifest.entities},
        clock=clock,
        random=random,
        ids=RowIds(clock, random),
    )
