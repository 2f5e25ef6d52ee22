"""Decimals: exact numbers of at most 19 digits before and 19 behind the point.

A client writes a text, ``"12.50"``, or a whole number. A row has the shortest text of the number,
``"12.5"``. The store compares sort texts: 39 digits whose order as texts is that of the numbers.
The first digit is 1, or 0 for a negative number, of whose digits each is taken from 9.

Invariant: equal numbers have one text and one sort text. Called by the checks of field types, by
parsers of queries and policies, and by stores.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

DIGITS: Final = 19  # before the point, and behind it
_TEXT: Final = re.compile(r"([+-]?)0*([0-9]{1,19})(?:\.([0-9]{1,19}))?", re.ASCII)
_NINES: Final = str.maketrans("0123456789", "9876543210")
_UNIT: Final = Decimal(1).scaleb(-DIGITS)
EXACT: Final = Context(prec=100)  # a sum of 2**64 decimals has fewer digits


def decimal_of(value: object) -> str | None:
    """Return the text that a row has for a number, or None if the value is no decimal."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 10**DIGITS else ""
    match = _TEXT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    sign, whole, fraction = match.groups()
    fraction = (fraction or "").rstrip("0")
    whole = whole.lstrip("0") or "0"
    text = f"{whole}.{fraction}" if fraction else whole
    return f"-{text}" if sign == "-" and text != "0" else text


def sort_text_of(text: str) -> str:
    """Return the sort text of a row's decimal."""
    is_negative = text[0] == "-"
    whole, _, fraction = text[is_negative:].partition(".")
    digits = whole.zfill(DIGITS) + fraction.ljust(DIGITS, "0")
    return f"0{digits.translate(_NINES)}" if is_negative else f"1{digits}"


def decimal_of_sort_text(text: str) -> str:
    """Return the row's decimal of a sort text."""
    is_negative = text[0] == "0"
    digits = text[1:].translate(_NINES) if is_negative else text[1:]
    whole, fraction = digits[:DIGITS].lstrip("0") or "0", digits[DIGITS:].rstrip("0")
    number = f"{whole}.{fraction}" if fraction else whole
    return f"-{number}" if is_negative else number


def decimal_key(value: object) -> object:
    """Return what a decimal field's value compares as: its sort text.

    A value that is no decimal, in a table that another program filled, stays as it is.
    """
    text = decimal_of(value)
    return value if text is None else sort_text_of(text)


def text_of(number: Decimal) -> str:
    """Return a sum as text, without zeros behind the last digit."""
    text = f"{number:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def mean_of(total: Decimal, count: int) -> Decimal:
    """Return the average, rounded half to even at the 19th digit behind the point."""
    return EXACT.divide(total, Decimal(count)).quantize(
        _UNIT, rounding=ROUND_HALF_EVEN, context=EXACT
    )
