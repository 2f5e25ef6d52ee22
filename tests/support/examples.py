"""How many examples a property is tried with: all in CI, a fifth in `make test-fast`.

`make test-fast` sets TEST_EXAMPLES=few. Every `@settings(max_examples=...)` of a test that starts
no process takes its number through `count_examples`; `tests/conftest.py` does the same for the
tests that name no number.
"""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "TEST_EXAMPLES"  # no PYLON_ in front: Pylon warns of unknown settings
DEFAULT_EXAMPLES: Final = 100  # of hypothesis
_FEW_SHARE: Final = 5
_FEW_AT_LEAST: Final = 5


def count_examples(all_examples: int) -> int:
    """Return how many of `all_examples` this run tries."""
    if os.environ.get(VARIABLE) != "few":
        return all_examples
    return min(all_examples, max(_FEW_AT_LEAST, all_examples // _FEW_SHARE))
