"""Refusals: the error of a denied action; in dev mode it says which rule denied it, and why.

A `Rule` is the expression of a policy, and its origin: the policy, the key and the place in the
manifest. A `RuleVerdict` says how a rule judged. `refusal_of` makes the error of the verdicts of
an action. In production nobody sees more than that a policy denied the action, because strangers
must not learn which rules exist, nor the values of rows. Called by `rules` and `room_rules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from pylon.errors import PolicyDenied
from pylon.policy.expression import Expr
from pylon.policy.verdicts import Verdict, causes_of, describe, text_of

MESSAGE: Final = "Access denied by policy"
HINT: Final = "Check your auth token or the policy rules in your schema"


class Rule(msgspec.Struct, frozen=True):
    """A rule of a policy. `key` is its key in the manifest; `place` is ``file:line``, or empty."""

    policy: str
    key: str
    place: str
    expr: Expr


class RuleVerdict(msgspec.Struct, frozen=True):
    """How a rule judged. `row`: which row of an update was its ``data``; empty for one row."""

    rule: Rule
    verdict: Verdict
    row: str = ""

    @property
    def title(self) -> str:
        """Return which rule it is, and where."""
        place = f" ({self.rule.place})" if self.rule.place else ""
        row = f", of the row {self.row} the update" if self.row else ""
        return f'policy "{self.rule.policy}"{place}: {self.rule.key}{row}'

    def lines(self) -> Iterator[str]:
        """Yield the tree as lines, and what decided."""
        yield f"{self.title}: {'passes' if self.verdict.holds else 'denies'}"
        yield from (f"  {line}" for line in self.verdict.lines())
        for cause in causes_of(self.verdict):
            yield f"  because {describe(cause)}"

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values."""
        return {
            "policy": self.rule.policy, "rule": self.rule.key, "place": self.rule.place,
            "row": self.row, "holds": self.verdict.holds, "verdict": self.verdict.to_json(),
            "because": [describe(cause) for cause in causes_of(self.verdict)],
        }


def refusal_of(verdicts: Iterable[RuleVerdict]) -> PolicyDenied:
    """Return the error that names the first rule that denied, and its deciding comparisons."""
    denied = next((found for found in verdicts if not found.verdict.holds), None)
    if denied is None:  # the rows that it asked have changed since
        return PolicyDenied(MESSAGE, hint=HINT)
    failed = [describe(cause) for cause in causes_of(denied.verdict)]
    return PolicyDenied(
        MESSAGE, hint=f"{denied.title} denies it, because {'; '.join(failed)}",
        policy=denied.rule.policy, rule=denied.rule.key, place=denied.rule.place,
        expression=text_of(denied.rule.expr), failed=failed,
    )
