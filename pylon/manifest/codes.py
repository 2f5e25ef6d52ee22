"""Diagnostic codes of manifests: the explanation and the remedy of each.

Invariant: the table has exactly the codes that a manifest can get; the corpus of bad manifests in
the tests proves it. Read by `pylon.catalogue`, for `pylonctl explain` and docs/errors.md.
"""

from __future__ import annotations

from typing import Final

_NAMES: Final = "use letters, digits and _ only, not starting with a digit or with _"

# By code: explanation, remedy.
DIAGNOSTICS: Final[dict[str, tuple[str, str]]] = {
    "MANIFEST_PARSE_ERROR": (
        "The file cannot be read, is not JSON, or has a member of the wrong JSON type.",
        "correct the named place; the message says what is expected there.",
    ),
    "MANIFEST_VERSION_UNSUPPORTED": (
        "manifest_version is one that this version of Pylon does not know.",
        "set it to the version that the hint names, or run a newer Pylon.",
    ),
    "MANIFEST_KEY_UNKNOWN": (
        "A key that Pylon does not know, most likely a misspelt one. A warning; in dev mode an "
        "error.",
        "correct the key, or start its name with x- if it is a note of yours.",
    ),
    "MANIFEST_KEY_WITHOUT_EFFECT": (
        "A key of the published tools that changes nothing on this server. A warning.",
        "remove it; this server does not do what it asks for.",
    ),
    "AUTH_FIELD_UNKNOWN": (
        "An entry of auth.guest.carry names a field that no entity has, so its rows would not "
        "follow a guest.",
        'write "Entity.field", as the entity declares it.',
    ),
    "AUTH_NAME_UNKNOWN": (
        "auth.user names an entity or a field that is not declared, most likely misspelt. A "
        "warning.",
        "use one of the hint.",
    ),
    "AUTH_URL_INVALID": (
        "An entry of auth.urls is no page that a mail can lead to.",
        "write a URL of http or https, or a path of this server that begins with /; without a "
        "fragment.",
    ),
    "AUTH_ROLE_INVALID": (
        "An entry of auth.org_roles is no role, or one that every app has; or one of "
        "auth.totp.required_roles is in neither.",
        "use a-z, 0-9, _ and -, beginning with a letter.",
    ),
    "AUTH_ON_DELETE_INVALID": (
        "An entry of auth.on_delete or auth.org.on_delete names no field, or says what cannot be "
        "done with it.",
        "name a field as Entity.field, and say delete, null (of an optional field) or keep.",
    ),
    "AUTH_ON_DELETE_MISSING": (
        "auth.on_delete leaves out a field that refers to users and has no onDelete, so an account "
        "with such rows may not be deletable. A warning.",
        "add the field to auth.on_delete.",
    ),
    "FIELD_HIDDEN": (
        "A search or a relation uses a field that no client may see: one with serverOnly, or a "
        "secret of the user entity (passwordHash, totp...) or of the invite entity (tokenHash).",
        "use another field, or keep the value in an entity that no policy lets clients read.",
    ),
    "RATE_LIMIT_INVALID": (
        "A rule of rateLimits counts nothing, has no time or no name of its own, or is one of too "
        "many that count the same.",
        "write it as docs/limits.md says: entity:<Name>:<verb>, route:</path> or ws:message, and a "
        "window such as 1m.",
    ),
    "AUTH_ORIGIN_INVALID": (
        "An entry of auth.trusted_origins that no page's origin can be equal to. A warning.",
        "write scheme://host, with a port if it is not the scheme's own.",
    ),
    "SCHEMA_EMPTY": ("The manifest declares no entity.", "declare at least one."),
    "ENTITY_NAME_EMPTY": ("An entity has no name.", "name it."),
    "ENTITY_NAME_INVALID": ("An entity's name cannot name a table.", f"{_NAMES}."),
    "ENTITY_NAME_RESERVED": (
        "Names that start with _, sqlite_ or pg_ belong to Pylon, to SQLite and to PostgreSQL.",
        "choose another name.",
    ),
    "ENTITY_NAME_TOO_LONG": (
        "PostgreSQL would cut the name of the table. A warning; on PostgreSQL the start is "
        "refused.",
        "use a name of at most 63 bytes.",
    ),
    "ENTITY_DUPLICATE": (
        "Two entities have the same name. Names that differ only in case are the same.",
        "rename one of them.",
    ),
    "ENTITY_FIELDS_TOO_MANY": (
        "An entity has more fields than a table can have columns.",
        "divide it into entities of at most as many fields as the hint says.",
    ),
    "FIELD_NAME_EMPTY": ("A field has no name.", "name it."),
    "FIELD_NAME_INVALID": ("A field's name cannot name a column.", f"{_NAMES}."),
    "FIELD_NAME_RESERVED": (
        "Names that start with _ or sqlite_ are reserved, and every entity has its id already.",
        "choose another name; leave id out.",
    ),
    "FIELD_NAME_TOO_LONG": (
        "PostgreSQL would cut the name of the column. A warning; on PostgreSQL the start is "
        "refused.",
        "use a name of at most 63 bytes.",
    ),
    "FIELD_DUPLICATE": (
        "Two fields of an entity have the same name. Names that differ only in case are the same.",
        "rename one of them.",
    ),
    "FIELD_TYPE_UNKNOWN": ("A field has a type that does not exist.", "use one of the hint."),
    "FIELD_ID_TARGET_NOT_FOUND": (
        "A field of type id(X) points at an entity that is not declared.",
        "declare the entity, or correct the name: upper and lower case matter.",
    ),
    "FIELD_DEFAULT_INVALID": (
        "A default is no value of the field's type, or is made in a way that does not fit it.",
        "write a constant of the type, or one of the objects of docs/manifest.md.",
    ),
    "FIELD_FIXED_WITHOUT_DEFAULT": (
        "Clients may not send a fixed field, so a required one needs a default.",
        "give it a default, or make it optional.",
    ),
    "FIELD_UNIQUE_INVALID": (
        "Only texts can be unique without regard to case.", "write true, or change the type."
    ),
    "FIELD_REFERENCE_INVALID": (
        "references and onDelete are for fields of type id(Entity), and must fit each other.",
        "correct or remove the key; docs/manifest.md has the rules.",
    ),
    "FIELD_VALUES_INVALID": (
        "The values of an enum are missing, repeated, empty, too many or too long; or a field of "
        "another type has values.",
        'list each value once, for example "values": ["open", "done"].',
    ),
    "ENTITY_LABEL_NOT_FOUND": (
        "The label of an entity is no field of it.", "name one of its fields.",
    ),
    "FIELD_CONSTRAINT_INVALID": (
        "A constraint, or wire, does not fit the type of its field, no value could fulfil it, or "
        "the pattern is none of RE2.",
        "correct or remove the key; docs/data-types.md has the constraints of each type.",
    ),
    "FIELD_TYPE_UNUSABLE": (
        "A json field is unique, or stands in an index or in search, which compare whole values.",
        "put the value that is looked for into a field of its own.",
    ),
    "INDEX_NAME_EMPTY": ("An index has no name.", "name it."),
    "INDEX_NAME_INVALID": ("An index's name cannot be part of an SQL name.", f"{_NAMES}."),
    "INDEX_NAME_DUPLICATE": ("Two indexes have the same name.", "rename one of them."),
    "INDEX_FIELDS_EMPTY": ("An index names no field.", "name its fields, or drop it."),
    "INDEX_FIELD_NOT_FOUND": (
        "An index names a field that the entity does not have.", "use one of the hint."
    ),
    "INDEX_FIELD_DUPLICATE": (
        "An index names a field twice.", "remove one of the two."
    ),
    "INDEX_WHERE_INVALID": (
        "The filter of a partial index is no filter of its entity, or has an operator that an "
        "index cannot have.",
        "compare fields with constants by equality, $ne, $gt, $gte, $lt, $lte or $in; all of these "
        "must hold.",
    ),
    "RELATION_FIELD_NOT_FOUND": (
        "A relation names a field that its entity (with many: its target) does not have.",
        "use one of the hint.",
    ),
    "RELATION_NAME_EMPTY": ("A relation has no name.", "name it."),
    "RELATION_NAME_TAKEN": (
        "A relation is named id or like a field of its entity, whose value it would cover.",
        "rename the relation.",
    ),
    "RELATION_DUPLICATE": (
        "Two relations of an entity have the same name.", "rename one of them."
    ),
    "RELATION_TARGET_NOT_FOUND": (
        "A relation points at an entity that is not declared.", "use one of the hint."
    ),
    "SEARCH_FIELD_NOT_FOUND": (
        "The search configuration names a field that the entity does not have.",
        "use one of the hint.",
    ),
    "SEARCH_FIELDS_TOO_MANY": (
        "The search configuration names more text fields than an index can have.",
        "name at most as many as the hint says.",
    ),
    "QUERY_NAME_EMPTY": ("A query has no name.", "name it."),
    "QUERY_DUPLICATE": ("Two queries have the same name.", "rename one of them."),
    "ACTION_NAME_EMPTY": ("An action has no name.", "name it."),
    "ACTION_DUPLICATE": ("Two actions have the same name.", "rename one of them."),
    "INPUT_FIELD_NAME_EMPTY": ("An input of a query or action has no name.", "name it."),
    "INPUT_FIELD_DUPLICATE": (
        "Two inputs of a query or action have the same name.", "rename one of them."
    ),
    "INPUT_FIELD_TYPE_UNKNOWN": (
        "An input has a type that does not exist.", "use one of the hint."
    ),
    "POLICY_NAME_EMPTY": ("A policy has no name.", "name it."),
    "POLICY_DUPLICATE": ("Two policies have the same name.", "rename one of them."),
    "POLICY_ALLOW_EMPTY": (
        "A policy has no rule, so it has no effect.",
        "give it allow, or one of allowRead, allowInsert, allowUpdate, allowDelete, allowWrite,"
        " or for rooms allowJoin, allowBroadcast or allowPresence.",
    ),
    "POLICY_NO_TARGET": (
        "A policy is for no entity, no action and no room.",
        "name one with entity, action or room.",
    ),
    "POLICY_ROOM_INVALID": (
        "The room of a policy is no pattern, or the policy is for an entity or an action as well.",
        "write a whole name, or the first part of one and a * at the end; write one policy for"
        " rooms and another one for the rest.",
    ),
    "POLICY_RULE_MISPLACED": (
        "A policy has a rule that is never asked: allowJoin, allowBroadcast or allowPresence"
        " without room, or a rule of rows with room.",
        "use a key of the hint.",
    ),
    "POLICY_ENTITY_NOT_FOUND": (
        "A policy is for an entity that is not declared.", "use one of the hint."
    ),
    "POLICY_ACTION_NOT_FOUND": (
        "A policy is for an action that is not declared.", "use one of the hint."
    ),
    "ROUTE_PATH_EMPTY": ("A route has no path.", "give it one that starts with /."),
    "ROUTE_PATH_DUPLICATE": ("Two routes have the same path.", "change one of them."),
    "ROUTE_PATH_NO_SLASH": ("A route's path does not start with /.", "put a / before it."),
    "ROUTE_AUTH_INVALID": (
        "A route's auth is neither public nor user.", "write public or user, or leave it out."
    ),
    "ROUTE_QUERY_NOT_FOUND": (
        "A route names a query that is not declared.", "use one of the hint."
    ),
    "ROUTE_PARAM_NOT_IN_QUERY": (
        "A parameter of a route's path is no input of the route's query.",
        "declare the input, or rename the parameter.",
    ),
}
