"""`pylonctl secret status|rotate`: the secret key, and the values that each key has sealed.

`rotate` changes a key file while no server runs. The next start seals with the new key, and the
identity process seals anew what the key before has sealed (`workers.identity.seal_jobs`). No
output has a key; keys are named by their kid.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from pylon.app_manifest import read_app_manifest
from pylon.auth.sealed_values import COLUMN, TABLES, kid_of, read_sealed
from pylon.auth.secret_key import key_file_of, read_keys, rotate_key_file
from pylon.cli.output import json_flag, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.cli.stores import existing_store, hold_stopped_store
from pylon.clock import SystemRandom
from pylon.config import Config
from pylon.errors import Unavailable


@click.group()
@json_flag
def secret() -> None:
    """Look at the secret key, and change it."""


@secret.command("status")
@dev_flag
@json_flag
def status_of_secret(dev: bool) -> None:
    """Show the keys, and how many values each of them has sealed."""
    config = read_settings(dev=dev).config
    keys = read_keys(config)
    if keys is None:
        raise Unavailable("there is no secret key yet: the first start makes one")
    reader = existing_store(config).open_reader(read_app_manifest(config))
    counts: Counter[str] = Counter()
    try:
        for table in TABLES:
            subjects = {
                tuple(record[key] for key in table.keys): kid_of(record[COLUMN])
                for page in read_sealed(lambda read: read(reader), table) for record in page
            }
            counts.update(subjects.values())
        backup_codes = reader.count_records("backup_codes", [])
    finally:
        reader.close()
    path = key_file_of(config)
    unknown = sum(count for kid, count in counts.items() if kid not in keys.kids)
    body = {
        "place": "PYLON_SECRET_KEY" if path is None else str(path),
        "keys": [{"kid": kid, "values": counts[kid]} for kid in keys.kids],
        "unknown_values": unknown, "backup_codes": backup_codes,
    }
    lines = [f"{body['place']}:"]
    for number, kid in enumerate(keys.kids):
        use = "seals" if number == 0 else "opens what it sealed before"
        lines.append(f"  {kid}  {counts[kid]} values  {use}")
    if unknown:
        lines.append(f"  {unknown} values are sealed by keys that are not here")
    if len(keys.kids) > 1 and not any(counts[kid] for kid in keys.kids[1:]):
        lines.append(
            f"No value needs the earlier keys. Backup codes ({backup_codes}) that were made with "
            "them stop counting without them"
        )
    result(body, "\n".join(lines))


@secret.command("rotate")
@dev_flag
@json_flag
def rotate_secret(dev: bool) -> None:
    """Put a new key in front of those of the key file. The server must be stopped."""
    config = read_settings(dev=dev).config
    path = _file_of(config)
    with hold_stopped_store(existing_store(config)):
        kids = rotate_key_file(path, SystemRandom(), is_own=config.secret_key_file is None)
    result(
        {"path": str(path), "kid": kids[0], "before": kids[1]},
        f"{path}: the key {kids[0]} seals from the next start; {kids[1]} opens what it has sealed. "
        "Then see pylonctl secret status",
    )


def _file_of(config: Config) -> Path:
    """Return the key file.

    Raises:
        Unavailable: the key is in a setting, or there is none yet.
    """
    path = key_file_of(config)
    if path is None:
        raise Unavailable(
            "the secret key is in PYLON_SECRET_KEY, which pylonctl cannot change",
            hint="set PYLON_SECRET_KEY_PREVIOUS to it and PYLON_SECRET_KEY to a new one "
            "(docs/security.md)",
        )
    if not path.exists():
        raise Unavailable(f"there is no {path} yet: the first start makes it")
    return path
