"""Values: checks and encodes rows, so that each stored value has its field's type.

`codec` turns a body into a row that the store keeps, `types` has the check of each field type,
`defaults` the values that the server gives, `default_checks` their diagnostics, `datetimes` the
notations of an instant, `bodies` the decoding of JSON bodies, `errors` what a client reads about a
refused value.
"""

from pylon.values.bodies import decode_body, decode_query
from pylon.values.codec import (
    EncodedRow,
    EntityCodec,
    SqlValue,
    check_row_size,
    encode_row,
)
from pylon.values.datetimes import instant_of, is_datetime
from pylon.values.defaults import FieldDefaults
from pylon.values.errors import invalid_value, shown, unknown_column
from pylon.values.folding import fold_case
from pylon.values.types import INT_MAX, INT_MIN, expected, fits

__all__ = [
    "INT_MAX",
    "INT_MIN",
    "EncodedRow",
    "EntityCodec",
    "FieldDefaults",
    "SqlValue",
    "check_row_size",
    "decode_body",
    "decode_query",
    "encode_row",
    "expected",
    "fits",
    "fold_case",
    "instant_of",
    "invalid_value",
    "is_datetime",
    "shown",
    "unknown_column",
]
