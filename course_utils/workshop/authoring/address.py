"""The course's public address: where it stands, and the links that follow from it.

It stands in `_config.yml` under `repository.url`, and in no other source. Until `python -m course_utils publish-as`
has set it, the course is nobody's: then there are no links, for all of them would be dead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from course_utils.errors import CourseError

#: Where Colab, Binder and the repository's own pages look for files.
BRANCH = "main"
_GITHUB = re.compile(
    r"(?:(?:https?://)?(?:www\.)?github\.com/|(?:ssh://)?git@github\.com[:/])"
    r"(?P<owner>[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*)/(?P<name>[\w.-]+?)(?:\.git)?/?"
)


class AddressError(CourseError, ValueError):
    """This is not the address of a repository on GitHub; nothing was changed."""


@dataclass(frozen=True)
class Address:
    """A repository on GitHub.

    Args:
        owner: an account or an organisation, such as "ada".
        name: of the repository, such as "peft-course".
    """

    owner: str
    name: str

    @classmethod
    def of(cls, text: str) -> Address:
        """Read an address as people copy it: with or without `.git` and a slash at its end, or for ssh.

        Raises:
            AddressError: it names no repository on GitHub.
        """
        found = _GITHUB.fullmatch(text.strip())
        if not found or set(found["name"]) == {"."}:
            raise AddressError(
                f"{text!r} is not the address of a repository on GitHub. It looks like "
                "https://github.com/NAME/REPOSITORY; copy it from the repository's page."
            )
        return cls(found["owner"], found["name"])

    @property
    def is_somebodys(self) -> bool:
        """Has the course been given an address?"""
        return self != NOBODY

    @property
    def path(self) -> str:
        """As in "ada/peft-course"."""
        return f"{self.owner}/{self.name}"

    @property
    def repository(self) -> str:
        """The repository's page, which is what pip and git take, too."""
        return f"https://github.com/{self.path}"

    @property
    def pages(self) -> str:
        """Where GitHub Pages shows the book, with a slash at the end."""
        own = f"{self.owner}.github.io".lower()
        return f"https://{own}/" if self.name.lower() == own else f"https://{own}/{self.name}/"

    @property
    def codespaces(self) -> str:
        """Opens the repository in a Codespace, which `.devcontainer/` describes."""
        return f"https://codespaces.new/{self.path}"

    @property
    def binder(self) -> str:
        """Opens the learner's labs on Binder, which `binder/` describes."""
        return f"https://mybinder.org/v2/gh/{self.path}/{BRANCH}?urlpath=lab/tree/my_labs"

    def colab(self, file: str) -> str:
        """Opens a notebook in Colab; `file` is such as "labs/09_lora.ipynb"."""
        return f"https://colab.research.google.com/github/{self.path}/blob/{BRANCH}/{file}"


#: What stands in `_config.yml` as long as nobody has published the course.
NOBODY = Address("OWNER", "REPOSITORY")


def settings(root: Path) -> dict[str, Any]:
    """What `_config.yml` says."""
    found: dict[str, Any] = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    return found


def stored(root: Path) -> Address:
    """The address that stands in `_config.yml`; `Address.is_somebodys` says whether anybody has set it.

    Raises:
        AddressError: it was set by hand, to something that is no repository on GitHub.
    """
    return Address.of(str(settings(root)["repository"]["url"]))


def store(root: Path, address: Address) -> None:
    """Set the address in `_config.yml`; every other line stays as it is."""
    place = root / "_config.yml"
    text, count = re.subn(
        r"^(  url: ).*$", rf"\g<1>{address.repository}", place.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    if count != 1:
        raise AddressError(f"_config.yml has {count} lines that begin with '  url: ', and should have one")
    place.write_text(text, encoding="utf-8")
