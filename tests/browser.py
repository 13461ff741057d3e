"""A real browser for the tests of the book, and a web server that shows the built book to it.

`python tests/browser.py` makes the two pictures of the README from the built book, and the card that other sites show
beside a link to it (`make pictures`).

The tests look at `book/_build/html`, or at the folder that the variable `BOOK_HTML` names.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import Browser, Error, sync_playwright

ROOT = Path(__file__).parents[1]
HTML = Path(os.environ.get("BOOK_HTML") or ROOT / "book" / "_build" / "html").resolve()
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "msedge")
_FLAGS = (
    *("--headless", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)


class NoBrowserError(RuntimeError):
    """This computer has no browser that we can drive."""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """The system's Chromium, Chrome or Edge; else the one that `playwright install chromium` fetched."""
    paths = [path for name in NAMES if (path := shutil.which(name))]
    flags = [*_FLAGS, "--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else list(_FLAGS)
    with sync_playwright() as playwright:
        said = ""
        for path in (*paths, None):
            try:
                browser = playwright.chromium.launch(executable_path=path, args=flags)
            except Error as error:
                said = str(error).strip().splitlines()[0]
                continue
            try:
                yield browser
            finally:
                browser.close()
            return
    raise NoBrowserError(
        f"no browser could be started ({said}). Install one: apt install chromium, or playwright install chromium"
    )


class _Pages(SimpleHTTPRequestHandler):
    """As GitHub Pages does it: the book lies under a folder, and 404.html answers for what is not there."""

    under = ""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: pytest shows what failed."""

    def translate_path(self, path: str) -> str:
        """Outside the folder there is nothing."""
        if self.under and not path.startswith(f"{self.under}/"):
            return os.devnull + "/nothing"
        return super().translate_path(path.removeprefix(self.under))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """404 with the book's own page."""
        page = Path(self.directory) / "404.html"
        if code != 404 or not page.is_file():
            super().send_error(code, message, explain)
            return
        body = page.read_bytes()
        self.send_response(404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve(folder: Path, under: str = "") -> Iterator[str]:
    """Serve a folder on this computer only, as `under` of the server; the address ends without a slash."""
    handler = type("Handler", (_Pages,), {"under": under})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{under}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_CARD = """<body style="margin: 0; width: 1200px; height: 630px; background: #fff; color: #14213d; display: flex;
align-items: center; gap: 60px; box-sizing: border-box; padding: 0 80px; font: 38px/1.35 sans-serif">{logo}
<div><div style="font-weight: 700; font-size: 74px; line-height: 1.12">{title}</div>
<p style="margin: 32px 0 0">Every method written out, proven equal to the library, and measured on a laptop.</p></div>
<style>svg {{ width: 260px; height: 260px; flex: none }}</style></body>"""


def take_card(folder: Path, title: str) -> None:
    """Draw the card: 1200 × 630, as the sites that show such cards ask for."""
    logo = (ROOT / "book" / "_static" / "logo.svg").read_text(encoding="utf-8")
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1200, "height": 630}, color_scheme="light")
        page.set_content(_CARD.format(logo=logo, title=title))
        page.screenshot(path=str(folder / "card.png"))


def take_pictures(folder: Path, page_name: str = "book/09_lora.html") -> None:
    """Photograph the first screen of a page of the built book, and draw the main result."""
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.goto((HTML / page_name).as_uri(), wait_until="load")
        page.evaluate("() => MathJax.startup.promise")
        page.screenshot(path=str(folder / "readme-book.png"))

    from course_utils.plots.map_of_peft import families  # torch is slow to import, and only this needs it

    figure = families().figure
    figure.savefig(folder / "readme-result.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    static = ROOT / "book" / "_static"
    take_card(static, yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["title"])
    take_pictures(static)
