"""Identifiers as SQL text. Called by every module of this package that writes SQL."""

from pylon.storage.core.names import quote

__all__ = ["quote"]
