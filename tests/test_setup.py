"""Setting the course up, and working in it: `make` on computers that scripts play, and a learner's own labs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import first_cells
import nbformat
import pytest

from course_utils.workshop.authoring import my_labs
from course_utils.workshop.authoring.notebooks import ROOT
from course_utils.workshop.grading import sandbox
from course_utils.workshop.grading.collect import collect
from course_utils.workshop.grading.command import main as grade
from course_utils.workshop.grading.labs import read_lab, sources

needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
#: It writes down what it is asked for, and makes environments that hold copies of itself.
PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >> "$LOG"
case "$*" in
  *'version_info[:2]'*) echo {version};;
  '-m venv --clear '*) rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python";;
  *find_spec*) test -e "$(dirname "$0")/torch";;
  *whl/cpu*) {index};;
  '-m pip install -c constraints.txt -e'*) touch "$(dirname "$0")/torch";;
esac
"""
SLIM = "-m pip install --quiet --no-deps"


class Computer:
    """A folder with the course's Makefile, and the programs that it finds."""

    def __init__(self, folder: Path) -> None:
        self.course, self.programs, self.log = folder / "the course 课程", folder / "bin", folder / "log"
        self.course.mkdir(parents=True)
        self.programs.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy2(ROOT / name, self.course)
        for name in ("sh", "make", "cat", "mkdir", "cp", "rm", "awk", "grep", "dirname", "touch", "test", "printf"):
            if path := shutil.which(name):
                (self.programs / name).symlink_to(path)
        self.has("uname", "echo Linux")
        self.has("df", f"echo head; echo disk 0 0 {50_000_000} 1%")
        self.python("python3", "3.12")

    def has(self, name: str, says: str) -> None:
        """Install a program."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{says}\n", encoding="utf-8")
        path.chmod(0o755)

    def python(self, name: str, version: str, index: str = "exit 0") -> None:
        """Install a Python; `index` is what the one of PyTorch's CPU builds does."""
        path = self.programs / name
        path.write_text(PYTHON.format(version=version, index=index), encoding="utf-8")
        path.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run make, and forget what was asked for before."""
        self.log.write_text("", encoding="utf-8")
        return subprocess.run(
            [str(self.programs / "make"), *arguments],
            cwd=self.course,
            env={"PATH": str(self.programs), "LOG": str(self.log)},
            capture_output=True,
            text=True,
        )

    def asked(self, beginning: str) -> list[str]:
        """What a Python was asked to do."""
        return [line for line in self.log.read_text(encoding="utf-8").splitlines() if line.startswith(beginning)]


@pytest.fixture
def computer(tmp_path: Path) -> Computer:
    return Computer(tmp_path)


INSTALLED = ".venv/installed"


def test_an_environment_is_made_once(computer: Computer) -> None:
    done = computer.make(INSTALLED)
    assert done.returncode == 0, done.stderr
    assert "about 3 GB of disk" in done.stdout
    assert computer.asked("-m venv") == ["-m venv --clear .venv"]
    assert (computer.course / INSTALLED).read_text(encoding="utf-8") == f"{computer.course}, Python 3.12\n"
    assert "is up to date" in computer.make(INSTALLED).stdout


def test_after_a_move_the_course_is_installed_again_and_nothing_downloaded(computer: Computer) -> None:
    computer.make(INSTALLED)
    computer.course = computer.course.rename(computer.course.with_name("moved"))
    assert computer.make(INSTALLED).returncode == 0
    assert computer.asked("-m pip install -c constraints.txt -e") and not computer.asked("-m venv")
    assert not computer.asked(SLIM)
    assert "is up to date" in computer.make(INSTALLED).stdout


def test_another_python_is_taken_when_it_is_named_and_stays(computer: Computer) -> None:
    computer.make(INSTALLED)
    computer.python("other", "3.13")
    assert computer.make(INSTALLED, "PYTHON=other").returncode == 0
    assert computer.asked("-m venv") == ["-m venv --clear .venv"]
    assert (computer.course / INSTALLED).read_text(encoding="utf-8").endswith("Python 3.13\n")
    assert "is up to date" in computer.make(INSTALLED).stdout  # python3 is 3.12, but nobody asked for it
    (computer.course / ".venv/bin/python").unlink()  # the system has removed that Python
    assert computer.make(INSTALLED).returncode == 0
    assert (computer.course / INSTALLED).read_text(encoding="utf-8").endswith("Python 3.12\n")


def test_pytorch_for_processors_where_there_is_no_card(computer: Computer) -> None:
    computer.make(INSTALLED)
    (asked,) = computer.asked(SLIM)
    assert "--index-url https://download.pytorch.org/whl/cpu torch==" in asked


@pytest.mark.parametrize("why", ["card", "asked", "macOS"])
def test_the_plain_pytorch_elsewhere(why: str, computer: Computer) -> None:
    if why == "card":
        computer.has("nvidia-smi", "")
    if why == "macOS":
        computer.has("uname", "echo Darwin")
    done = computer.make(INSTALLED, *(["GPU=1"] if why == "asked" else []))
    assert done.returncode == 0 and not computer.asked(SLIM)
    assert ("about 7 GB" in done.stdout) == (why != "macOS")


def test_without_that_index_pip_decides(computer: Computer) -> None:
    computer.python("python3", "3.12", index="exit 1")
    done = computer.make(INSTALLED)
    assert done.returncode == 0, done.stderr
    assert "cannot be reached" in done.stdout and computer.asked("-m pip install -c constraints.txt -e")


def test_a_card_that_came_later_gets_its_pytorch(computer: Computer) -> None:
    computer.make(INSTALLED)
    (computer.course / ".venv/lib/python3.12/site-packages/torch-2.13.0+cpu.dist-info").mkdir(parents=True)
    assert computer.make(INSTALLED, "GPU=1").returncode == 0
    assert computer.asked("-m pip uninstall --quiet --yes torch")


@pytest.mark.parametrize(("free", "index", "needed"), [(2, "exit 0", 3), (5, "exit 1", 7), (5, "exit 0", None)])
def test_a_small_disk_is_noticed_before_anything_is_downloaded(
    free: int, index: str, needed: int | None, computer: Computer
) -> None:
    computer.has("df", f"echo head; echo disk 0 0 {free}000000 1%")
    computer.python("python3", "3.12", index=index)
    done = computer.make(INSTALLED)
    assert (done.returncode == 0) == (needed is None), done.stderr
    if needed:
        assert f"The packages need about {needed} GB of disk, and {free} GB are free here" in done.stderr
        assert not computer.asked("-m pip install -c constraints.txt") and not (computer.course / INSTALLED).exists()


def test_nothing_calls_a_script_of_the_environment() -> None:
    """After a move each script's first line names a Python that is not there."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    calls = [word for word in text.replace("(", " (").split() if word.startswith(("$(BIN)/", ".venv/bin/"))]
    assert not [word for word in calls if not word.startswith(("$(BIN)/python", ".venv/bin/python"))]


def test_reset_wants_a_lab(computer: Computer) -> None:
    done = computer.make("reset")
    assert done.returncode != 0 and "make reset LAB=09" in done.stderr


# --- a learner's labs ------------------------------------------------------------------------------------------------


@pytest.fixture
def course(tmp_path: Path) -> Path:
    (tmp_path / "labs").mkdir()
    for name in ("09_lora", "10_lora_family"):
        shutil.copy(ROOT / "labs" / f"{name}.ipynb", tmp_path / "labs")
    (tmp_path / "labs" / "words.txt").write_text("a file that a lab reads", encoding="utf-8")
    return tmp_path


def answer(course: Path, text: str = "x = 1  # mine") -> Path:
    path = course / "my_labs" / "09_lora.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source = text
    nbformat.write(notebook, path)
    return path


def test_labs_are_copied_once(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert my_labs.main(["--course", str(course)]) == 0
    assert capsys.readouterr().out == "4 notebook(s) copied to my_labs\n"
    for path in (course / "labs").iterdir():
        assert (course / "my_labs" / path.name).read_bytes() == path.read_bytes()
    assert my_labs.update(course) == ["your labs are in my_labs"]


def test_an_update_renews_what_nobody_changed_and_never_an_answer(course: Path) -> None:
    my_labs.update(course)
    mine = answer(course)
    before = mine.read_bytes()
    for path in (course / "labs").glob("*.ipynb"):
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")  # the course was updated
    said = my_labs.update(course)
    assert said == [
        "1 notebook(s) copied to my_labs",
        "my_labs/09_lora.ipynb holds your work, and the course has a newer one: make reset LAB=09",
    ]
    assert mine.read_bytes() == before
    (course / "my_labs" / ".copied.json").unlink()  # even then
    my_labs.update(course)
    assert mine.read_bytes() == before


@pytest.mark.parametrize("name", ["09", "9", "09_lora", "09_lora.ipynb"])
def test_starting_over_keeps_the_old_copy(name: str, course: Path) -> None:
    my_labs.update(course)
    first = answer(course).read_bytes()
    assert my_labs.reset(course, name) == (
        "my_labs/09_lora.ipynb is a fresh copy; your old one is my_labs/09_lora.old-1.ipynb"
    )
    second = answer(course, "y = 2").read_bytes()
    assert my_labs.reset(course, name).endswith("my_labs/09_lora.old-2.ipynb")
    folder = course / "my_labs"
    assert (folder / "09_lora.old-1.ipynb").read_bytes() == first
    assert (folder / "09_lora.old-2.ipynb").read_bytes() == second
    assert (folder / "09_lora.ipynb").read_bytes() == (course / "labs" / "09_lora.ipynb").read_bytes()
    assert my_labs.update(course) == ["your labs are in my_labs"]


@pytest.mark.parametrize("name", ["31", "lora", "", "../labs/09_lora"])
def test_there_is_no_such_lab(name: str, course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert my_labs.main(["--course", str(course), "--reset", name]) == 1
    assert "there is no lab" in capsys.readouterr().err
    assert not (course / "my_labs").exists()


def test_without_labs_it_says_where_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert my_labs.main(["--course", str(tmp_path)]) == 1
    assert "run this in the course's folder" in capsys.readouterr().err


def test_the_grader_takes_a_students_whole_folder(course: Path) -> None:
    """`my_labs` as it is, with an old copy and the note of what was copied; and the file of `labs` just as well."""
    my_labs.update(course)
    my_labs.reset(course, "09")
    mine = answer(course)
    given = course / "class" / "ada"
    shutil.copytree(course / "my_labs", given / "my_labs")
    shutil.copytree(course / "labs", course / "class" / "bob")
    found = collect(course / "class", [read_lab(sources()["09_lora"]), read_lab(sources()["10_lora_family"])])
    assert found.students == ["ada", "bob"]
    chosen = {(one.student, one.lab): one.path for one in found.submissions}
    assert chosen["ada", "09_lora"] == given / "my_labs" / mine.name
    assert len(chosen) == 4


def test_git_ignores_a_learners_labs() -> None:
    command = ["git", "-c", f"safe.directory={ROOT}", "check-ignore", "my_labs/09_lora.ipynb"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    if done.returncode == 128:
        pytest.skip("this is no git checkout")
    assert done.stdout.strip() == "my_labs/09_lora.ipynb"


def test_on_windows_the_grader_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows: its import fails
    alone = importlib.util.spec_from_file_location("sandbox_alone", str(sandbox.__file__))
    assert alone and alone.loader
    module = importlib.util.module_from_spec(alone)
    monkeypatch.setitem(sys.modules, "sandbox_alone", module)
    alone.loader.exec_module(module)
    assert module.resource is None
    monkeypatch.setattr(sandbox, "resource", None)
    assert grade([str(tmp_path), "--out", str(tmp_path / "report")]) == 1
    assert "grade in WSL 2, in a container, or on Linux" in capsys.readouterr().err


# --- the wheel alone, as on Colab ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The course's wheel, built and installed outside the repository; its requirements are the environment's."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("course_utils", "book/results"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.lock"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, source)
    pip = [sys.executable, "-m", "pip"]
    options = ["--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", *options, "--no-build-isolation", "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *options, "--target", str(folder / "site"), str(wheel)], check=True)
    return folder / "site"


@pytest.mark.parametrize("name", ["05_evaluation", "21_case_study"])
def test_labs_begin_from_the_wheel_alone(
    name: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(site))
    assert site in first_cells.run(name, tmp_path).parents


def test_a_whole_lab_runs_from_the_wheel_alone(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--whole"):
        pytest.skip("it trains for a minute; add --whole")
    monkeypatch.setenv("PYTHONPATH", str(site))
    assert site in first_cells.run("05_evaluation", tmp_path, whole=True).parents


@pytest.mark.parametrize(
    "arguments", [["notebooks", "--check"], ["notebooks"], ["new", "30", "x", "Y"], ["student-copy", "copy"]]
)
def test_authors_commands_say_that_they_need_the_repository(arguments: list[str], site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "course_utils", *arguments]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "this command needs the repository" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
