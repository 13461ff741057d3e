"""What stands around the code says the same thing everywhere: requirements, versions, links, the public address."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlparse

import floors
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from course_utils.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *EXTRAS["lab"], *EXTRAS["book"], *EXTRAS["test"]]
ADDRESS = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]


def pins() -> dict[str, str]:
    """Package → version, from constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in found}


def tracked() -> list[Path]:
    """The files that git knows, or would take."""
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_conda_asks_for_the_same_as_pip() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']},<3.15", "pip"]  # 3.15 has no wheels of the pinned versions
    learners = [*PROJECT["dependencies"], *EXTRAS["lab"], *EXTRAS["book"]]  # nobody who learns needs a browser's driver
    assert pip == {"pip": ["--constraint constraints.txt", *learners, "--editable ."]}


@pytest.mark.parametrize("line", REQUIREMENTS)
def test_each_requirement_is_pinned_and_its_floor_is_met(line: str) -> None:
    requirement = Requirement(line)
    version = pins().get(canonicalize_name(requirement.name))
    assert version, f"constraints.txt has no line for {requirement.name}"
    assert requirement.specifier.contains(version)


def test_constraints_fit_every_platform() -> None:
    assert "course-utils" not in pins() and "pip" not in pins()
    assert not [version for version in pins().values() if not re.fullmatch(r"[0-9.]+(post\d+)?", version)]


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_what_only_one_platform_needs_is_pinned_too(platform: str) -> None:
    """A terminal on Windows, naps on a Mac, the libraries for NVIDIA cards on Linux: all were taken as they came."""
    own = {"linux": ["pexpect", "triton", "nvidia-cublas"], "darwin": ["pexpect", "appnope"], "win32": ["pywinpty"]}
    system = "nt" if platform == "win32" else "posix"
    where = {"sys_platform": platform, "os_name": system, "platform_machine": "x86_64"}
    lines = [Requirement(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[2:]]
    there = {one.name for one in lines if one.marker is None or one.marker.evaluate(where)}
    assert there.issuperset(own[platform])


@pytest.mark.usefixtures("network")
def test_the_exact_versions_are_what_the_command_makes(tmp_path: Path) -> None:
    """A requirement that was added or raised, and `make lock` forgotten, is seen."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(["make", "--quiet", "lock"], cwd=tmp_path, check=True)
    assert (tmp_path / "constraints.txt").read_bytes() == (ROOT / "constraints.txt").read_bytes()


def test_requirements_are_floors_not_pins() -> None:
    assert not [line for line in REQUIREMENTS if "==" in line], "an exact version breaks Colab"


def test_the_address_stands_in_one_place() -> None:
    path = urlparse(ADDRESS).path.strip("/")
    kinds = (".md", ".py", ".toml", ".yml", ".json", ".cff", ".ipynb")
    sources = [file for file in tracked() if file.suffix in kinds and file.name != "test_address.py"]
    holders = {file.relative_to(ROOT).as_posix() for file in sources if path in file.read_text(encoding="utf-8")}
    # The README and the notebooks are read where nothing can build their links; tests/test_address.py compares those.
    built = {"README.md"} | {name for name in holders if name.endswith(".ipynb")}
    assert holders - built == {"_config.yml"}


@pytest.mark.parametrize("name", [path.name for path in ROOT.glob("*.md")])
def test_relative_links_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not urlparse(link).scheme]
    assert not [link for link in links if not (ROOT / link.split("#")[0]).exists()]
    assert all(alt.strip() for alt in re.findall(r"!\[([^\]]*)\]", text)), "a picture has no alternative text"


def test_the_readme_names_the_version_of_torch_that_is_pinned() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"torch==([\d.]+)", text)) <= {pins()["torch"]}


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
#: A rule may have several targets, and a target may have hyphens; `VAR := value` and `target: export VAR` are no rules.
TARGETS = {target for rule in re.findall(r"^([a-z][a-z -]*):(?!=)", MAKEFILE, re.MULTILINE) for target in rule.split()}
VARIABLES = set(re.findall(r"\$\(([A-Z_]+)\)", MAKEFILE))


def troubles_with_make(text: str) -> list[str]:
    """What the `make …` commands of a text, between backticks or at the start of a line, name that does not exist."""
    found = []
    commands = re.findall(r"(?:`|^[ \t]*(?:\$ )?)make ([^`#&|;\n]+)", text, re.MULTILINE)
    for words in map(str.split, commands):
        for word in words:
            name, equals, _ = word.partition("=")
            if equals and name not in VARIABLES:
                found.append(f"make {' '.join(words)}: the Makefile does not use {name}")
            if not equals and re.fullmatch(r"[a-z-]+", word) and word not in TARGETS:
                found.append(f"make {' '.join(words)}: there is no target {word}")
            if '"' in word:  # the rest is a value with spaces
                break
    return found


FURNITURE = [
    *(".ci/run", ".pre-commit-config.yaml", ".devcontainer/Dockerfile", "binder/postBuild"),
    *(file.relative_to(ROOT).as_posix() for file in sorted((ROOT / ".github").rglob("*.yml"))),
]


@pytest.mark.parametrize("file", [*(path.name for path in sorted(ROOT.glob("*.md"))), "book", *FURNITURE])
def test_texts_name_targets_and_variables_of_the_makefile(file: str) -> None:
    place = ROOT / file
    paths = sorted(place.glob("*.md")) if place.is_dir() else [place]
    # A command stands in backticks or in a block; a line of prose that begins with "make" does not count.
    fenced = re.compile(r"^`{3,}(?:bash|powershell)\n(.*?)^`{3,}", re.MULTILINE | re.DOTALL)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        blocks = fenced.findall(text) if path.suffix == ".md" else [re.sub(r"\b(exec|entry:|run:|RUN) ", "\n", text)]
        inline = re.findall(r"`make [^`\n]+`", text)
        assert not [trouble for part in (*blocks, *inline) for trouble in troubles_with_make(part)], path.name


def test_the_help_names_what_there_is() -> None:
    shown = "\n".join(re.findall(r'echo "(make .*)"$', MAKEFILE, re.MULTILINE)).replace('\\"', '"')
    named = set(re.findall(r"\bmake ([a-z-]+)", shown))
    parts = {"help", "assets", "book-strict"}  # of other targets, or what says this
    assert named <= TARGETS and TARGETS - named <= parts | {"pictures"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("`make test-flors`", "no target test-flors"),
        ("make test-device DEVISE=cuda", "does not use DEVISE"),
        ("make book lap", "no target lap"),
        ('`make test-device DEVICE=cuda` and `make study ARGS="--jobs 4"`', ""),
        ("make test-floors  # slow", ""),
    ],
)
def test_the_check_of_targets_finds_what_it_should(text: str, said: str) -> None:
    troubles = " ".join(troubles_with_make(text))
    assert said in troubles and bool(troubles) == bool(said)


def test_citation_and_project_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["title"] == yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
    assert {"cff-version", "message", "authors"} <= set(citation)


def test_no_notebook_and_no_result_holds_a_path_of_one_machine() -> None:
    """Warnings and tracebacks in stored outputs like to name files of the author's computer."""
    texts = {file: file.read_text(encoding="utf-8") for file in tracked() if file.suffix in (".ipynb", ".json")}
    own = re.compile(r"(?<![\w.~])/(?:home|root|tmp|Users)/\w[^\"\s]*|/site-packages/[^\"\s]*")
    assert not {file.name: match[0] for file, text in texts.items() if (match := own.search(text))}


def test_what_is_installed_without_the_repository_has_its_results(tmp_path: Path) -> None:
    """As on Colab, where the first cell of a lab installs the package and nothing else."""
    source, site = tmp_path / "source", tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__", "*.lock")
    for name in ("course_utils", "book/results"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy2(ROOT / name, source)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    read = "from course_utils.evaluation import results; print(results.FOLDER, results.read('quality')['seeds'])"
    done = _in_python(read, site, tmp_path)
    assert str(site) in done.stdout and done.stdout.rstrip().endswith("[0, 1, 2, 3, 4]"), done.stderr
    installed = {file.relative_to(site).as_posix() for file in (site / "course_utils").rglob("*.py")}
    files = [file.relative_to(ROOT) for file in (ROOT / "course_utils").rglob("*.py")]
    here = {file.as_posix() for file in files if file.parts[1] != "workshop"}
    assert installed == here, "a new folder of course_utils must be named in pyproject.toml"

    # What makes the course stays in the repository: in site-packages it would write there, or report on nothing.
    assert not (site / "course_utils" / "workshop").exists()
    commands = [command for command, (module, _) in COMMANDS.items() if module.startswith("workshop.")]
    assert len(commands) > 20
    run = f"from course_utils.__main__ import main; print([main([command]) for command in {commands}])"
    # Without site-packages: the finder of an editable install would answer for the missing room, and act here.
    done = _in_python(run, site, tmp_path, "-S")
    assert done.stdout.strip() == str([1] * len(commands)), done.stderr
    lines = done.stderr.splitlines()
    assert [line.split(": this command needs the repository")[0] for line in lines] == commands


def _in_python(code: str, site: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the course is installed in `site`, and the repository is out of sight."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *flags, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def without_an_encoding(source: str) -> list[int]:
    """The lines of Python that read or write text as the computer likes; ruff sees those alone whose path it knows."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and "encoding" not in {keyword.arg for keyword in call.keywords}:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            binary = any(isinstance(one, ast.Constant) and "b" in str(one.value) for one in call.args[1:])
            plain_open = isinstance(call.func, ast.Name) and name == "open" and not binary
            if (name, len(call.args)) in (("read_text", 0), ("write_text", 1)) or plain_open:
                found.append(call.lineno)
    return found


def test_each_read_and_write_names_its_encoding() -> None:
    """Elsewhere the default is not UTF-8, and the course is full of signs that cp1252 does not know."""
    files = [file for file in tracked() if file.suffix == ".py"]
    assert len(files) > 200
    assert not {file.name: lines for file in files if (lines := without_an_encoding(file.read_text(encoding="utf-8")))}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("path.read_text()", [1]),
        ("path.write_text(text)", [1]),
        ("open(path)", [1]),
        ("open(path, 'w')", [1]),
        ("path.read_text('utf-8'), path.write_text(text, 'utf-8'), path.read_text(encoding='utf-8')", []),
        ("open(path, 'rb'), path.read_bytes(), os.open(path, 0)", []),
    ],
)
def test_the_check_of_encodings_finds_what_it_should(line: str, found: list[int]) -> None:
    assert without_an_encoding(line) == found


def test_the_floors_of_every_requirement_are_known() -> None:
    lowest = dict(line.split("==") for line in floors.floors(PROJECT))
    assert lowest["torch"] == "2.11" and lowest["transformers"] == "5.15" and len(lowest) > 30
    with pytest.raises(ValueError, match=r"'torch' in pyproject\.toml names no lowest version"):
        floors.floors({"dependencies": ["torch"]})


# --- make, for real --------------------------------------------------------------------------------------------------


def make(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run make on a copy of the Makefile in an otherwise nearly empty folder."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, folder)  # with its time, for the stamp's sake
    environment = {**os.environ, **({"PATH": path} if path else {})}
    command = [shutil.which("make") or "make", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


needs_make = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")


@needs_make
def test_make_says_that_python_is_missing(tmp_path: Path) -> None:
    done = make(tmp_path, "book", "PYTHON=python-that-is-missing")
    assert done.returncode != 0
    assert "python-that-is-missing was not found. Install Python 3.11 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_says_that_python_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo Python 3.9.1;; *) exit 1;; esac\n', encoding="utf-8")
    old.chmod(0o755)
    done = make(tmp_path, "test", f"PYTHON={old}")
    assert done.returncode != 0
    assert "is older than 3.11: Python 3.9.1" in done.stderr


@needs_make
def test_a_failed_book_fails_again(tmp_path: Path) -> None:
    """Sphinx remembers pages as done although they had warnings; our second build must not believe it."""
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.md").write_text("# Page\n\n{doc}`missing`\n", encoding="utf-8")
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: book/index\n", encoding="utf-8")
    (tmp_path / "_config.yml").write_text(
        "title: A book\nonly_build_toc_files: true\nexclude_patterns: ['.*']\n", encoding="utf-8"
    )
    scripts = tmp_path / ".venv" / "bin"
    scripts.mkdir(parents=True)
    python = scripts / "python"  # fetching is not the question here
    build = f"*jupyter_book*) exec '{sys.executable}' \"$@\";;"
    python.write_text(f'#!/bin/sh\ncase "$*" in {build} *version_info*) echo 3.12;; esac\n', encoding="utf-8")
    python.chmod(0o755)
    (tmp_path / ".venv" / "installed").write_text(f"{tmp_path}, Python 3.12\n", encoding="utf-8")
    first, second = make(tmp_path, "book"), make(tmp_path, "book")
    assert "unknown document" in first.stderr
    assert first.returncode != 0 and second.returncode != 0
    assert "unknown document" in second.stderr
