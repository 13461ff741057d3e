"""The copy for students holds the course, and no answer."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from submissions import lab, solved

from course_utils.workshop.authoring import notebooks, student_copy
from course_utils.workshop.authoring.notebooks import ROOT
from course_utils.workshop.grading.labs import sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("copy") / "for students"
    assert student_copy.main([str(made)]) == 0
    return made


def test_no_answer_is_in_the_copy(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if "solutions" in path.parts or "tests" in path.parts]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".md", ".py", ".ipynb")]
    whole = "\n".join(texts)
    for name in sources():
        for task in lab(name).tasks:
            answer = solved(name)[task.exercise]
            assert answer not in whole and json.dumps(answer)[1:-1] not in whole, task.exercise


def test_the_pages_and_the_contents_name_no_solution(folder: Path) -> None:
    contents = yaml.safe_load((folder / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in contents["parts"] for chapter in part["chapters"]]
    named = [one["file"] for chapter in chapters for one in (chapter, *chapter.get("sections", [])) if "file" in one]
    assert not [name for name in named if name.startswith("solutions/")]
    whole = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert len(chapters) == sum(len(part["chapters"]) for part in whole["parts"])
    for page in (folder / "book").glob("[0-9]*.md"):
        assert "solutions/" not in page.read_text(encoding="utf-8"), page.name


def test_the_readme_promises_what_the_copy_holds(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert not [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not (folder / link).exists()]
    assert {*re.findall(r"`make ([a-z]+)", text)} == student_copy.TARGETS - {
        "help",
        "assets",
        "clean",
        "$(VENV)/installed",
    }
    assert r".venv\Scripts\python -m jupyterlab my_labs" in text


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_every_target_of_the_copy_can_be_made(folder: Path) -> None:
    text = (folder / "Makefile").read_text(encoding="utf-8")
    named = {name for line in re.findall(r"^([a-z][a-z -]*):(?!=)", text, re.MULTILINE) for name in line.split()}
    assert named == student_copy.TARGETS - {"$(VENV)/installed"}
    phony = {name for line in re.findall(r"^\.PHONY: (.*)", text, re.MULTILINE) for name in line.split()}
    assert phony - {"again"} == named
    for name in named:
        done = subprocess.run(["make", "-n", name, "LAB=09"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "solutions" not in done.stdout and "tests" not in done.stdout
    help_ = subprocess.run(["make"], cwd=folder, capture_output=True, text=True).stdout
    assert {*re.findall(r"^make ([a-z]+)", help_, re.MULTILINE)} <= named


def test_without_the_repository_nothing_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebooks, "ROOT", tmp_path / "site")
    assert student_copy.main([str(tmp_path / "copy")]) == 1
    assert "this command needs the repository" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


def test_a_folder_with_something_in_it_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert student_copy.main([str(folder)]) == 1
    assert "is not empty" in capsys.readouterr().err
