"""SQL functions: what PostgreSQL lacks for the meaning of conditions and figures.

PostgreSQL's own arithmetic fails for a divisor of 0, and for a result that a double cannot hold; it
compares whole numbers with doubles as doubles; and it fails for a text that is no JSON. These
functions never fail, and give what docs/query-semantics.md says. Their names are without a schema,
so that they are in the one that the connection works in.

A function that may catch an error opens a subtransaction, which no parallel worker may do; so no
function is marked as safe for them. `FUNCTIONS` is run by the schema at each start; `dialect` and
`aggregate` call the functions.
"""

from __future__ import annotations

from typing import Final

EXACT: Final = "_pylon_exact"  # (double precision) -> numeric
WHOLE: Final = "_pylon_whole"  # (double precision) -> bigint
REMAINDER: Final = "_pylon_mod"  # (bigint, bigint) -> bigint
ARITHMETIC: Final = {"+": "_pylon_add", "-": "_pylon_sub", "*": "_pylon_mul", "/": "_pylon_div"}
ELEMENT: Final = "_pylon_element"  # (text, text[]) -> json; the others of JSON take the same two
ELEMENT_OF_KIND: Final = {
    "any": "_pylon_element_any", "text": "_pylon_element_text",
    "number": "_pylon_element_number", "boolean": "_pylon_element_boolean",
}
HAS_MEMBER: Final = {  # by the type of the member, which is the third argument
    "text": "_pylon_has_text", "numeric": "_pylon_has_number", "boolean": "_pylon_has_boolean",
}
DECIMAL: Final = "_pylon_decimal"  # (text: a sort text) -> numeric
WITHOUT: Final = "_pylon_without"  # (text: a JSON object, text: a member) -> text
TOO_LARGE: Final = "_pylon_too_large"  # () -> text: fails, with program_limit_exceeded
WEEK: Final = "_pylon_week"  # (text: a date) -> text

_HEAD: Final = "CREATE OR REPLACE FUNCTION"
_PURE: Final = "LANGUAGE plpgsql IMMUTABLE STRICT"
_INFINITY: Final = "'Infinity'::float8"
# A double of this size holds no fraction, and its usual text has too few digits to be exact.
_COARSE: Final = (
    "value >= -9223372036854775808 AND value < 9223372036854775808 "
    "AND abs(value) >= 9007199254740992"
)


def _float_function(name: str, body: str) -> str:
    return (
        f"{_HEAD} {name}(a double precision, b double precision) RETURNS double precision "
        f"{_PURE} AS $$ BEGIN {body} END $$"
    )


# The result of a product or quotient whose size a double cannot hold: 0 if it is too small.
_FAR: Final = (
    "EXCEPTION WHEN numeric_value_out_of_range THEN IF {is_small} THEN RETURN 0; END IF; "
    f"RETURN CASE WHEN (a < 0) = (b < 0) THEN {_INFINITY} ELSE -{_INFINITY} END;"
)


def _sum(sign: str) -> str:
    """The result of an overflow has the sign of `a`."""
    return (
        f"RETURN nullif(a {sign} b, 'NaN'); EXCEPTION WHEN numeric_value_out_of_range THEN "
        f"RETURN CASE WHEN a > 0 THEN {_INFINITY} ELSE -{_INFINITY} END;"
    )


def _member_function(name: str, kind: str, of_json: str, argument: str) -> str:
    return (
        f"{_HEAD} {name}(value text, path text[], member {argument}) RETURNS boolean {_PURE} AS $$ "
        f"DECLARE found json := {ELEMENT}(value, path); "
        "BEGIN IF found IS NULL OR json_typeof(found) <> 'array' THEN RETURN false; END IF; "
        "RETURN EXISTS (SELECT FROM json_array_elements(found) AS item "
        f"WHERE CASE WHEN json_typeof(item) = '{kind}' THEN {of_json} = member END); END $$"
    )


FUNCTIONS: Final[tuple[str, ...]] = (
    # The exact value, as far as a comparison with whole numbers of 64 bits and with other results
    # of this function needs it.
    f"{_HEAD} {EXACT}(value double precision) RETURNS numeric {_PURE} AS $$ BEGIN "
    f"RETURN CASE WHEN {_COARSE} THEN value::bigint::numeric ELSE value::text::numeric END; "
    "END $$",
    f"{_HEAD} {WHOLE}(value double precision) RETURNS bigint {_PURE} AS $$ BEGIN "
    "RETURN CASE WHEN value >= 9223372036854775808 THEN 9223372036854775807 "
    "WHEN value <= -9223372036854775808 THEN -9223372036854775808 "
    "ELSE trunc(value)::bigint END; END $$",
    f"{_HEAD} {REMAINDER}(a bigint, b bigint) RETURNS bigint {_PURE} AS $$ BEGIN "
    "RETURN CASE WHEN b <> 0 THEN a % b END; END $$",
    _float_function(ARITHMETIC["+"], _sum("+")),
    _float_function(ARITHMETIC["-"], _sum("-")),
    _float_function(
        ARITHMETIC["*"],
        "RETURN nullif(a * b, 'NaN'); " + _FAR.format(is_small="abs(b) < 1"),
    ),
    _float_function(
        ARITHMETIC["/"], "IF b = 0 THEN RETURN NULL; END IF; RETURN nullif(a / b, 'NaN'); "
        + _FAR.format(is_small="abs(b) > 1"),
    ),
    # The value at a path; names lead into objects only.
    f"{_HEAD} {ELEMENT}(value text, path text[]) RETURNS json {_PURE} AS $$ "
    "DECLARE found json; name text; BEGIN found := value::json; FOREACH name IN ARRAY path LOOP "
    "IF json_typeof(found) <> 'object' THEN RETURN NULL; END IF; "
    "found := found -> name; IF found IS NULL THEN RETURN NULL; END IF; END LOOP; "
    "RETURN found; EXCEPTION WHEN data_exception THEN RETURN NULL; END $$",
    # The number of a JSON value: a double where its text has a point or an exponent.
    f"{_HEAD} _pylon_json_number(value json) RETURNS numeric {_PURE} AS $$ "
    "DECLARE digits text := value #>> '{}'; BEGIN "
    f"RETURN CASE WHEN digits ~ '[.eE]' THEN {EXACT}(digits::double precision) "
    "ELSE digits::numeric END; EXCEPTION WHEN data_exception THEN RETURN NULL; END $$",
    f"{_HEAD} {ELEMENT_OF_KIND['any']}(value text, path text[]) RETURNS boolean {_PURE} AS $$ "
    f"BEGIN RETURN nullif(json_typeof({ELEMENT}(value, path)) <> 'null', false); END $$",
    f"{_HEAD} {ELEMENT_OF_KIND['text']}(value text, path text[]) RETURNS text {_PURE} AS $$ "
    f"DECLARE found json := {ELEMENT}(value, path); BEGIN "
    "RETURN CASE WHEN json_typeof(found) = 'string' THEN found #>> '{}' END; "
    "EXCEPTION WHEN data_exception THEN RETURN NULL; END $$",
    f"{_HEAD} {ELEMENT_OF_KIND['number']}(value text, path text[]) RETURNS numeric {_PURE} AS $$ "
    f"DECLARE found json := {ELEMENT}(value, path); BEGIN "
    "RETURN CASE WHEN json_typeof(found) = 'number' THEN _pylon_json_number(found) END; END $$",
    f"{_HEAD} {ELEMENT_OF_KIND['boolean']}(value text, path text[]) RETURNS boolean {_PURE} AS $$ "
    f"DECLARE found json := {ELEMENT}(value, path); BEGIN "
    "RETURN CASE WHEN json_typeof(found) = 'boolean' THEN (found #>> '{}')::boolean END; END $$",
    _member_function(HAS_MEMBER["text"], "string", "item #>> '{}'", "text"),
    _member_function(HAS_MEMBER["numeric"], "number", "_pylon_json_number(item)", "numeric"),
    _member_function(HAS_MEMBER["boolean"], "boolean", "(item #>> '{}')::boolean", "boolean"),
    f"{_HEAD} {DECIMAL}(digits text) RETURNS numeric {_PURE} AS $$ BEGIN "
    "RETURN CASE WHEN left(digits, 1) = '1' THEN substr(digits, 2)::numeric ELSE "
    "-translate(substr(digits, 2), '0123456789', '9876543210')::numeric END "
    "* 0.0000000000000000001; EXCEPTION WHEN data_exception THEN RETURN NULL; END $$",
    # An object's text without a member; the others keep their text and order.
    f"{_HEAD} {WITHOUT}(value text, member text) RETURNS text {_PURE} AS $$ BEGIN "
    "RETURN (SELECT '{' || coalesce(string_agg(to_json(key)::text || ':' || item, ','), '') || '}' "
    "FROM json_each(value::json) AS part (key, item) WHERE key <> member); END $$",
    f"{_HEAD} {TOO_LARGE}() RETURNS text LANGUAGE plpgsql AS $$ BEGIN "
    "RAISE program_limit_exceeded; END $$",
    # The week of a date: weeks begin on Monday, days before a year's first Monday are in week 00.
    f"{_HEAD} {WEEK}(value text) RETURNS text {_PURE} AS $$ "
    "DECLARE at date := left(value, 10)::date; BEGIN "
    "RETURN left(value, 4) || '-W' || "
    "lpad(((extract(doy FROM at)::int + 7 - extract(isodow FROM at)::int) / 7)::text, 2, '0'); "
    "EXCEPTION WHEN data_exception THEN RETURN NULL; END $$",
)
