"""The copy for students holds the course, and no answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from submissions import lab, solved

from course_utils.authoring import ROOT
from course_utils.grading import student_copy
from course_utils.grading.labs import sources


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
    named = [one["file"] for chapter in chapters for one in (chapter, *chapter.get("sections", []))]
    assert not [name for name in named if name.startswith("solutions/")]
    whole = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    assert len(chapters) == sum(len(part["chapters"]) for part in whole["parts"])
    for page in (folder / "book").glob("[0-9]*.md"):
        assert "solutions/" not in page.read_text(encoding="utf-8"), page.name


def test_a_folder_with_something_in_it_is_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert student_copy.main([str(folder)]) == 1
    assert "is not empty" in capsys.readouterr().err
