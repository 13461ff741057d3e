"""What the theme and docutils leave out for people who listen to a page or use it with a keyboard.

`tests/test_book.py` looks at every page with axe-core; each mend below names the rule that it satisfies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx


def name_the_arrows(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """summary-name: an arrow of the contents opens a chapter's pages; say which chapter's."""
    original: Callable[..., Any] | None = context.get("generate_toctree_html")
    if original is None:
        return

    def named(*args: Any, **kwargs: Any) -> Any:
        soup = original(*args, **kwargs)
        for summary in soup.select("li > details > summary"):
            link = summary.find_parent("li").find("a")
            if link is not None and not summary.get_text(strip=True):
                summary["aria-label"] = f"Pages of “{link.get_text(strip=True)}”"
        return soup

    context["generate_toctree_html"] = named


def visit_citation(self: Any, node: nodes.citation) -> None:
    """aria-required-children: a list holds items. docutils gives them a role that ARIA has withdrawn."""
    if not isinstance(node.previous_sibling(), nodes.citation):
        self.body.append('<div role="list" class="citation-list">\n')
    self.body.append(self.starttag(node, "div", classes=["citation"], role="listitem"))


def depart_citation(self: Any, node: nodes.citation) -> None:
    """Close the item, and the list after the last one."""
    self.body.append("</div>\n")
    if not isinstance(node.next_node(descend=False, siblings=True), nodes.citation):
        self.body.append("</div>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect both; after the theme, whose function is wrapped."""
    app.connect("html-page-context", name_the_arrows, priority=900)
    app.add_node(nodes.citation, override=True, html=(visit_citation, depart_citation))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
