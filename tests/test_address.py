"""One command gives the course its address, and every link that follows from it leads to a file that exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote

import nbformat
import pytest

from course_utils.workshop.authoring import address, notebooks, publish_as
from course_utils.workshop.authoring.address import NOBODY, Address, AddressError

ROOT = notebooks.ROOT
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import publish  # noqa: E402

sys.path.pop(0)

NOTEBOOKS = sorted([*(ROOT / "labs").glob("*.ipynb"), *(ROOT / "solutions").glob("*.ipynb")])
GRACE, BOB = Address("grace", "lora-course"), Address("Bob-2", "bob-2.github.io")
#: What a link to a file of the repository looks like: the file follows.
TO_A_FILE = re.compile(r"https://[^\s)\"'\\]*?/(?:blob|edit|raw)/main/([^\s)\"'\\?#]+)")


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/grace/lora-course",
        "https://github.com/grace/lora-course/",
        "https://github.com/grace/lora-course.git",
        "http://www.github.com/grace/lora-course",
        "github.com/grace/lora-course",
        "git@github.com:grace/lora-course.git",
        "ssh://git@github.com/grace/lora-course.git",
        "  https://github.com/grace/lora-course\n",
    ],
)
def test_an_address_is_read_as_people_copy_it(text: str) -> None:
    assert Address.of(text) == GRACE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "grace/lora-course",
        "https://github.com/grace",
        "https://github.com/grace/..",
        "https://github.com/grace/lora-course/tree/main",
        "https://github.com/-grace/lora-course",
        "https://github.com/grace/peft course",
        "https://github.com.example.org/grace/lora-course",
        "https://git.example.org/grace/lora-course",
    ],
)
def test_what_is_no_address_gets_a_sentence(text: str) -> None:
    with pytest.raises(AddressError, match=r"is not the address of a repository on GitHub\. It looks like https://"):
        Address.of(text)


def test_the_links_of_an_address() -> None:
    assert (
        GRACE.colab("labs/a.ipynb")
        == "https://colab.research.google.com/github/grace/lora-course/blob/main/labs/a.ipynb"
    )
    assert (GRACE.pages, BOB.pages) == ("https://grace.github.io/lora-course/", "https://bob-2.github.io/")
    assert GRACE.is_somebodys and not NOBODY.is_somebodys


# --- what is committed -----------------------------------------------------------------------------------------------


def test_readme_and_notebooks_hold_the_address_that_the_settings_hold() -> None:
    assert publish_as.links(ROOT) in (ROOT / "README.md").read_text(encoding="utf-8"), (
        "run publish-as with the address of _config.yml"
    )
    here = address.stored(ROOT)
    for path in NOTEBOOKS:
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if "google.colab" in cell.source]
        assert cells == [notebooks.install_cell(path.stem, here)], path.name


# --- the command, in a copy ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that the command reads and writes, and of what its links lead to."""
    folder = tmp_path_factory.mktemp("address") / "course"
    for name in ("labs", "solutions", "course_utils", "book/results", ".devcontainer", "binder"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*.lock"))
    for name in ("_config.yml", "README.md", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder / name)
    address.store(folder, NOBODY)
    return folder


def texts(course: Path) -> dict[str, str]:
    """Every text in which an address might stand, by its name in the repository."""
    kinds = (".ipynb", ".md", ".py", ".yml", ".toml")
    files = [path for path in course.rglob("*") if path.suffix in kinds and path.is_file()]
    return {path.relative_to(course).as_posix(): path.read_text(encoding="utf-8") for path in files}


def test_the_command_line(course: Path) -> None:
    """In a process of its own, as people call it."""
    command = [sys.executable, "-m", "course_utils", "publish-as", f"git@github.com:{GRACE.path}.git"]
    environment = os.environ | {"PYTHONPATH": str(course)}
    done = subprocess.run(command, cwd=course, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(
        f"the address of the course is {GRACE.repository}: {2 + len(NOTEBOOKS)} files changed"
    )
    assert done.returncode == 0 and address.stored(course) == GRACE


def test_one_command_moves_everything_and_every_link_leads_to_a_file(course: Path) -> None:
    publish_as.publish(course, NOBODY)
    for chosen, before in ((GRACE, NOBODY), (BOB, GRACE)):
        publish_as.publish(course, chosen)
        after = texts(course)
        assert not [name for name, text in after.items() if before.path in text]
        holders = {name for name, text in after.items() if chosen.path in text}
        assert holders == {"_config.yml", "README.md", *(path.relative_to(ROOT).as_posix() for path in NOTEBOOKS)}

        assert publish_as.publish(course, chosen) == [] and texts(course) == after

        readme = after["README.md"]
        found = TO_A_FILE.findall(readme)
        assert sorted(found) == [f"labs/{path.name}" for path in NOTEBOOKS if path.parent.name == "labs"]
        assert not [file for file in found if not (course / unquote(file)).is_file()]
        for link, needs in (
            (chosen.codespaces, ".devcontainer/devcontainer.json"),
            (chosen.binder, "binder/postBuild"),
        ):
            assert f"]({link})" in readme and (course / needs).is_file()
        assert f"]({chosen.pages})" in readme
        # The cell on Colab installs the version of the notebook, from this address.
        assert f"@ git+{chosen.repository}@v" in after["labs/09_lora.ipynb"]


def test_only_the_cell_for_colab_is_touched(course: Path) -> None:
    publish_as.publish(course, GRACE)
    for path in NOTEBOOKS:
        old, new = (nbformat.read(folder / path.parent.name / path.name, as_version=4) for folder in (ROOT, course))
        differ = [cell.source for cell, was in zip(new.cells, old.cells, strict=True) if cell != was]
        assert all("google.colab" in text for text in differ)


def test_nobody_has_no_links(course: Path) -> None:
    """The way back, too: after the address of nobody no link is left, and a sentence says what brings them."""
    publish_as.publish(course, NOBODY)
    holders = {name for name, text in texts(course).items() if NOBODY.path in text}
    assert holders == {"_config.yml"}
    readme = (course / "README.md").read_text(encoding="utf-8")
    assert "publish-as https://github.com/NAME/REPOSITORY" in readme
    assert not re.search(r"\]\(https://(?:colab|mybinder|codespaces)", readme)


@pytest.mark.parametrize("text", ["https://github.com/grace", "nonsense"])
def test_after_a_wrong_address_nothing_has_changed(
    text: str, course: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebooks, "ROOT", course)
    before = texts(course)
    assert publish_as.main([text]) == 1 and texts(course) == before
    assert "is not the address of a repository on GitHub" in capsys.readouterr().err


def test_a_readme_without_a_place_for_links_is_left_alone(course: Path, tmp_path: Path) -> None:
    for name in ("_config.yml", "README.md"):
        shutil.copy2(course / name, tmp_path / name)
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8").replace("<!-- links -->", ""), encoding="utf-8")
    before = (tmp_path / "_config.yml").read_text(encoding="utf-8")
    with pytest.raises(AddressError, match=r"README\.md needs the lines <!-- links -->"):
        publish_as.publish(tmp_path, BOB)
    assert (tmp_path / "_config.yml").read_text(encoding="utf-8") == before


def test_an_own_home_of_the_book_is_linked(course: Path, tmp_path: Path) -> None:
    shutil.copytree(course / "solutions", tmp_path / "solutions")
    config = (course / "_config.yml").read_text(encoding="utf-8")
    moved = config.replace("html:\n", "html:\n  baseurl: https://course.example.org/\n", 1)
    (tmp_path / "_config.yml").write_text(moved, encoding="utf-8")
    address.store(tmp_path, GRACE)
    assert "[Read the book](https://course.example.org/)" in publish_as.links(tmp_path)


# --- the book's buttons ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chosen", "shown"), [(NOBODY, False), (GRACE, True)])
def test_the_books_buttons_are_there_when_the_repository_is(chosen: Address, shown: bool) -> None:
    wanted = address.settings(ROOT)
    options = {f"use_{name}_button": True for name in ("repository", "edit_page", "issues", "download")}
    theme = options | {"repository_url": chosen.repository, "launch_buttons": wanted["launch_buttons"]}
    config = SimpleNamespace(html_theme_options=theme, html_baseurl="", html_title="")
    publish.set_address(cast(Any, None), cast(Any, config))
    buttons = [theme[f"use_{name}_button"] for name in ("repository", "edit_page", "issues")]
    assert buttons == [shown] * 3 and bool(theme["launch_buttons"]) is shown
    assert theme["use_download_button"], "a notebook can be downloaded from any book"
    assert all(wanted["html"][f"use_{name}_button"] for name in ("repository", "edit_page", "issues"))
