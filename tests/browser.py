"""A real browser for the tests of the book, and a web server that shows the built book to it.

`python tests/browser.py` makes the two pictures of the README from the built book (`make pictures`).
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

from playwright.sync_api import Browser, Error, sync_playwright

HTML = Path(__file__).parents[1] / "book" / "_build" / "html"
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


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: pytest shows what failed."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on this computer only; the address ends without a slash."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def take_pictures(folder: Path, page_name: str = "book/09_lora.html") -> None:
    """Photograph the first screen of a page of the built book, and draw the main result."""
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.goto((HTML / page_name).as_uri(), wait_until="load")
        page.evaluate("() => MathJax.startup.promise")
        page.screenshot(path=str(folder / "readme-book.png"))

    from course_utils.plots.quality import accuracy_against_parameters  # torch is slow to import, and only this needs it

    figure = accuracy_against_parameters().figure
    figure.savefig(folder / "readme-result.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    take_pictures(Path(__file__).parents[1] / "book" / "_static")
