"""Disposable domains: addresses that anybody has for ten minutes (PYLON_DISPOSABLE_FILE).

The file has a domain on each line; what follows `#` is a comment. The list that the project
`disposable-email-domains` publishes has this form. A domain counts with all domains below it.

Invariant: `read_domains` refuses a line that is no domain. The list is one text in memory, 0.1 MB
for 5,000 domains. Called by the flows that make accounts or change their addresses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pylon.auth.email_address import EmailAddress
from pylon.config import Config
from pylon.errors import DisposableEmail, StartRefused
from pylon.limits import DISPOSABLE_FILE_BYTES

_MOST_LABELS: Final = 127


@dataclass(frozen=True, slots=True)
class DisposableDomains:
    """The list: `text` has each domain between line breaks, as A-labels in small letters."""

    text: bytes = field(default=b"", repr=False)

    def refuse(self, email: EmailAddress) -> None:
        """Refuse an address of one of the domains.

        Raises:
            DisposableEmail
        """
        if not self.text:
            return
        domain = email.key.rpartition("@")[2]
        labels = domain.split(".")
        for number in range(len(labels)):
            # PERF: 50 us at the most for 5,000 domains; a set of them takes 0.6 MB.
            if b"\n" + ".".join(labels[number:]).encode() + b"\n" in self.text:
                raise DisposableEmail(
                    f"Addresses of {domain} are not accepted here",
                    hint="Use an address that you keep", field="email",
                )


def disposable_domains(config: Config) -> DisposableDomains:
    """Return the list of the settings, which is empty without a file.

    Raises:
        StartRefused: the file cannot be used.
    """
    path = config.disposable_file
    return DisposableDomains() if path is None else read_domains(Path(path))


def read_domains(path: Path) -> DisposableDomains:
    """Return the list of a file.

    Raises:
        StartRefused: it cannot be read, is too large, or a line is no domain.
    """
    try:
        raw = path.read_bytes()
    except OSError as ex:
        raise StartRefused(f"PYLON_DISPOSABLE_FILE: {path} cannot be read: {ex.strerror}") from ex
    if len(raw) > DISPOSABLE_FILE_BYTES:
        raise StartRefused(
            f"PYLON_DISPOSABLE_FILE: {path} has more than {DISPOSABLE_FILE_BYTES} bytes"
        )
    domains = []
    for number, line in enumerate(raw.splitlines(), 1):
        text = line.partition(b"#")[0].strip().decode("utf-8", "replace")
        if not text:
            continue
        domain = _as_domain(text)
        if domain is None:
            raise StartRefused(
                f"PYLON_DISPOSABLE_FILE: line {number} of {path} is no domain: {text[:80]!r}",
                hint="write one domain on each line, for example mailinator.com",
            )
        domains.append(domain)
    return DisposableDomains("".join(f"\n{each}" for each in domains).encode() + b"\n")


def _as_domain(text: str) -> str | None:
    """Return a domain as A-labels in small letters, or None if the text is none."""
    try:
        domain = text.lower().encode("idna").decode()
    except UnicodeError:
        return None
    labels = domain.split(".")
    is_domain = 1 < len(labels) <= _MOST_LABELS and all(
        label and label.replace("-", "a").isalnum() for label in labels
    )
    return domain if is_domain else None
