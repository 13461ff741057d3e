"""Make the course somebody's: `python -m course_utils publish-as https://github.com/NAME/REPOSITORY`.

Sets the address in `_config.yml`, and renews what is read where nothing can build a link: the README's links, and the
first cell of every notebook, which installs the course on Colab. Nothing is run, and no other cell is touched. Run with
the same address again, it changes nothing; with another one, it moves everything.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from course_utils.workshop.authoring import address, notebooks
from course_utils.workshop.authoring.address import Address, AddressError

COMMAND = "python -m course_utils publish-as"
_LINKS = re.compile(r"(?<=<!-- links -->\n).*?(?=<!-- end of links -->\n)", re.DOTALL)
_TITLE = re.compile(r"^# # Lab (\d+: .+)$", re.MULTILINE)
_NO_LINKS = f"""\
Links to the published book, to Colab, to Codespaces and to Binder appear here once the course has a public address:
whoever publishes it runs `{COMMAND} https://github.com/NAME/REPOSITORY`.
"""


def main(arguments: list[str]) -> int:
    """Set the address, and say what was written."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Give the course its public address on GitHub.")
    parser.add_argument("address", metavar="ADDRESS", help="such as https://github.com/NAME/REPOSITORY")
    options = parser.parse_args(arguments)
    try:
        root = notebooks.repository_root()
        chosen = Address.of(options.address)
        written = publish(root, chosen)
    except (AddressError, notebooks.AuthoringError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"the address of the course is {chosen.repository}: {len(written)} files changed")
    if written:
        print("Next: look at `git diff`, commit, push, and tag the commit as CONTRIBUTING.md says under *A release*.")
    return 0


def publish(root: Path, chosen: Address) -> list[Path]:
    """Write the address wherever it is needed.

    Args:
        root: of the course.
        chosen: the new address.

    Returns:
        The files that changed.

    Raises:
        AddressError: README.md or `_config.yml` has no place for it. Nothing is written.
    """
    readme = root / "README.md"
    if len(_LINKS.findall(readme.read_text(encoding="utf-8"))) != 1:
        raise AddressError("README.md needs the lines <!-- links --> and <!-- end of links -->, in this order and once")
    config = root / "_config.yml"
    before = {path: path.read_text(encoding="utf-8") for path in (config, readme)}
    address.store(root, chosen)
    readme.write_text(_LINKS.sub(lambda _: links(root), before[readme]), encoding="utf-8")
    changed = [path for path, text in before.items() if path.read_text(encoding="utf-8") != text]
    return changed + notebooks.renew_install_cells(root)


def links(root: Path) -> str:
    """The README's links, or the sentence that says what brings them; it ends with a line break."""
    here = address.stored(root)
    if not here.is_somebodys:
        return _NO_LINKS
    book = address.settings(root)["html"].get("baseurl") or here.pages  # it may live elsewhere
    web = f"[Read the book]({book}) · [Codespaces]({here.codespaces}) · [Binder]({here.binder})"
    labs = [
        f"[{title[1]}]({here.colab(f'labs/{source.stem}.ipynb')})"
        for source in notebooks.sources(root)
        if (title := _TITLE.search(source.read_text(encoding="utf-8")))
    ]
    return f"**On the web:** {web}\n\n**A lab in Colab:** {' · '.join(labs)}\n"
