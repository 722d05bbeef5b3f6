"""Docstrings name things with Sphinx's roles, which editors read; the site needs only the names."""

import re

ROLE = re.compile(r":(?:class|func|meth|attr|mod|data):(?=<code>)")


def on_page_content(html: str, **_: object) -> str:
    """Take the roles out, and the path before a name that begins with a tilde."""
    return ROLE.sub("", re.sub(r"<code>~(?:\w+\.)*", "<code>", html))
