"""The links to sign-in providers on the sign-in page.

A link begins the sign-in, and names two pages: the one that the reader wanted, and the sign-in page
for an error. It needs no script. Called by `sign_in_page`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import quote, urlencode

from pylon.api.identity.page_html import Link
from pylon.api.identity.routes import PAGES
from pylon.config import Config

_NAMES: Final[Mapping[str, str]] = {"github": "GitHub", "gitlab": "GitLab"}


def provider_links(config: Config, next_page: str) -> Sequence[Link]:
    """Return a link to each configured provider.

    Args:
        next_page: where the sign-in leads, checked by `check_redirect`.
    """
    errors = f"{PAGES}?{urlencode({'next': next_page})}"
    query = urlencode({"redirect": "1", "callback": next_page, "error_callback": errors})
    return [
        Link(
            f"Continue with {_NAMES.get(name, name.replace('_', ' ').title())}",
            f"/api/auth/login/{quote(name, safe='')}?{query}",
        )
        for name in sorted(provider.provider for provider in config.sign_in_providers)
    ]
