"""What a published book needs beside its pages: its address, cards for links to it, and a page for wrong addresses.

The address is that of the repository's GitHub Pages, so it stands in `_config.yml` once, as `repository.url`. A book
that lives elsewhere says so there with `html: baseurl: https://...`. As long as the repository is nobody's, no page has
a button that leads to it.

Sphinx writes canonical addresses with it, sphinxext-opengraph what a messenger shows when somebody sends a link, and
sphinx-sitemap `sitemap.xml`. Two things are left for this file:

* `404.html`: what the server shows for an address that does not exist. It appears at any depth, so its links are
  absolute; those of all other pages stay relative. (sphinx-notfound-page does not see the contents at the side: this
  theme makes them by a function of its own.)
* `index.html` leads to the first page, as before, and carries that page's cards too.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ConfigError

from course_utils.workshop.authoring.address import NOBODY, Address, AddressError

_LOST = """<h1>This page does not exist</h1>
<p>The address is wrong, or the page has moved. Look for it in the contents beside this text,
<a href="search.html">search the book</a>, or begin <a href="{first}.html">with its first page</a>.</p>"""
_INDEX = """<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={first}.html">
<title>{title}</title>
<link rel="icon" href="data:,">
{tags}
</head>
<body><p><a href="{first}.html">{title}</a></p></body>
</html>
"""


def pages_address(repository: str) -> str:
    """The address of a repository's GitHub Pages, with a slash at the end."""
    try:
        return Address.of(repository).pages
    except AddressError as error:
        raise ConfigError(
            f"repository.url is {repository!r}, and not https://github.com/OWNER/NAME: say where the book is "
            "published with html: baseurl: https://... in _config.yml"
        ) from error


def set_address(app: Sphinx, config: Config) -> None:
    """Fill in what follows from the address, and take the buttons away that would lead nowhere."""
    options = config.html_theme_options
    if not config.html_baseurl:
        config.html_baseurl = pages_address(options["repository_url"])
    if options["repository_url"] == NOBODY.repository:
        options |= dict.fromkeys(("use_repository_button", "use_edit_page_button", "use_issues_button"), False)
        options["launch_buttons"] = {}
    if not config.html_baseurl.endswith("/"):
        config.html_baseurl += "/"
    config.ogp_site_url = config.html_baseurl
    config.ogp_site_name = config.html_title


def lost_page(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The page for addresses that do not exist, in the theme's own frame."""
    context = {"title": "This page does not exist", "body": _LOST.format(first=app.config.root_doc)}
    yield "404", context, "page.html"


def finish(app: Sphinx, error: Exception | None) -> None:
    """Make the links of 404.html absolute, and write index.html."""
    if error or app.builder.name != "html":
        return
    folder, base = Path(app.outdir), urlparse(app.config.html_baseurl).path
    lost = folder / "404.html"
    text = re.sub(
        r'(\s(?:href|src|action|data-content_root)=")(?![a-z]+:|[/#"])(?:\./)?',
        rf"\g<1>{base}",
        lost.read_text("utf-8"),
    )
    # Nothing is at an address of its own here: no search machine should keep it, and no canonical address holds.
    text = re.sub(r'<link rel="canonical"[^>]*>', '<meta name="robots" content="noindex">', text)
    lost.write_text(text, encoding="utf-8")

    first = app.config.root_doc
    if first == "index":
        return
    head = (folder / f"{first}.html").read_text("utf-8").split("</head>")[0]
    tags = re.findall(r'<meta (?:property="og:|name="(?:description|twitter:))[^>]*>|<link rel="canonical"[^>]*>', head)
    title = html.escape(app.config.html_title)
    # The empty icon keeps a browser from asking the server for /favicon.ico before it goes on.
    page = _INDEX.format(language=app.config.language, first=first, title=title, tags="\n".join(tags))
    (folder / "index.html").write_text(page, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect all that; the last step comes after everything else has been written."""
    app.connect("config-inited", set_address)
    app.connect("html-collect-pages", lost_page)
    app.connect("build-finished", finish, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
