"""What stands around the course for other people's machines: workflows, images, templates. Nobody runs them here.

So their form is held against the schemas that check-jsonschema brings, and all that they name against what there is:
targets of make, commands, files, versions.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import first_cells
import pytest
import yaml

from course_utils.__main__ import COMMANDS
from course_utils.models import assets

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILE = (ROOT / ".devcontainer" / "Dockerfile").read_text(encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """A YAML file; "on" is a word there, and no boolean."""
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in found.items()}


def jobs() -> list[tuple[str, dict[str, Any]]]:
    """(workflow and job, job) of all workflows."""
    return [(f"{path.stem}: {name}", job) for path in WORKFLOWS for name, job in read(path)["jobs"].items()]


def scripts() -> dict[str, str]:
    """Where → shell commands, of everything that runs some."""
    found = {
        name: "\n".join(step["run"] for step in job["steps"] if "run" in step)
        for name, job in jobs()
        if any("run" in step for step in job["steps"])
    }
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    return found | {
        "Dockerfile": "\n".join(text for kind, text in instructions() if kind == "RUN"),
        "devcontainer": container["postCreateCommand"],
        "binder": (ROOT / "binder" / "postBuild").read_text(encoding="utf-8"),
    }


def instructions() -> list[tuple[str, str]]:
    """(instruction, the rest of its line) of the Dockerfile."""
    lines = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [(kind, rest) for kind, _, rest in (line.partition(" ") for line in lines)]


# --- their form ------------------------------------------------------------------------------------------------------

#: Schema → the files of its form, and a key without which one of them is wrong.
SCHEMAS = {
    "vendor.github-workflows": (".github/workflows/*.yml", "jobs"),
    "custom.github-workflows-require-timeout": (".github/workflows/*.yml", "    timeout-minutes"),
    "vendor.dependabot": (".github/dependabot.yml", "updates"),
    "vendor.github-issue-forms": (".github/ISSUE_TEMPLATE/*[!g].yml", "body"),
    "vendor.github-issue-config": (".github/ISSUE_TEMPLATE/config.yml", "blank_issues_enabled"),
    "vendor.citation-file-format": ("CITATION.cff", "title"),
}


def check_schema(schema: str, *files: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_form_is_that_of_the_schema(schema: str, tmp_path: Path) -> None:
    pattern, key = SCHEMAS[schema]
    files = sorted(ROOT.glob(pattern))
    done = check_schema(schema, *files)
    assert files and done.returncode == 0, done.stdout
    wrong = tmp_path / files[0].name
    text = files[0].read_text(encoding="utf-8")
    wrong.write_text(text.replace(f"{key}:", f"{key}-of-mine:"), encoding="utf-8")
    assert check_schema(schema, wrong).returncode == 1, "the schema sees nothing"


def test_the_issue_forms_are_all_checked() -> None:
    forms = {path.name for path in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir()}
    assert forms == {"config.yml", "chapter.yml", "lab.yml"}


@pytest.mark.parametrize("where", scripts())
def test_the_shell_can_read_every_script(where: str) -> None:
    if "windows" in where:
        pytest.skip("it is for PowerShell")
    shell = shutil.which("bash") or pytest.skip("there is no bash")
    script = re.sub(r"\$\{\{.*?\}\}", "value", scripts()[where])
    done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- what they name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", scripts())
def test_every_command_and_every_file_that_a_script_names_exists(where: str) -> None:
    script = scripts()[where]
    called = re.findall(r"-m course_utils ([a-z-]+)", script)
    assert not set(called) - {"doctor", "fetch", *COMMANDS}
    files = re.findall(r"(?<![\w$/\"{.-])(?:\.?[\w-]+/)*[\w.-]*\w\.(?:py|txt|md|toml|yml|json)\b|\.ci/\w+", script)
    assert not [file for file in files if not (ROOT / file).is_file()]
    modules = re.findall(r"python -m (\w+)", script)
    known = {"course_utils", "ipykernel", "jupyterlab", "pip", "pytest", "venv"}
    assert set(modules) <= known


def test_the_pythons_are_the_oldest_and_the_newest_that_are_admitted() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    conda = read(ROOT / "environment.yml")["dependencies"][0]
    bound = re.fullmatch(r"python>=3\.\d+,<3\.(\d+)", conda)
    assert bound
    newest = f"3.{int(bound[1]) - 1}"
    for name, job in jobs():
        if "strategy" in job:
            assert job["strategy"]["matrix"]["python"] == [oldest, newest], name
    versions = [step["with"]["python-version"] for _, job in jobs() for step in job["steps"] if "python" in str(step)
                and "with" in step and "python-version" in step["with"]]  # fmt: skip
    images = [rest.partition(":")[2].partition("-")[0] for kind, rest in instructions() if kind == "FROM"]
    binder = (ROOT / "binder" / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    for version in [*versions, *images, binder]:
        if "matrix" not in version:
            assert int(oldest.split(".")[1]) <= int(version.split(".")[1]) <= int(newest.split(".")[1]), version


def test_linux_macos_and_windows_are_all_tried() -> None:
    tests = read(ROOT / ".github" / "workflows" / "test.yml")["jobs"]
    assert tests["check"]["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest"]
    assert tests["check"]["steps"][-1] == {"run": "make check"}
    assert tests["everything"]["steps"][-1] == {"run": ".ci/run"}
    # Windows goes the way of the README, line by line.
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    taught = re.findall(r"^\.venv\\Scripts\\python (.+)$", readme, re.MULTILINE)
    script = "\n".join(step["run"] for step in tests["windows"]["steps"] if "run" in step)
    assert [line for line in taught if line.replace("[lab,book]", "[lab,book,test]") not in script] == [
        "-m jupyterlab my_labs"  # it waits for a person
    ]


def test_workflows_may_do_only_what_they_must() -> None:
    writing = {path.stem: scope for path in WORKFLOWS for scope, right in read(path)["permissions"].items()
               if right == "write"}  # fmt: skip
    assert writing == {"release": "contents"}
    assert {name: job["permissions"] for name, job in jobs() if "permissions" in job} == {
        "pages: publish": {"pages": "write", "id-token": "write"}
    }
    for name, job in jobs():
        for action in (step["uses"] for step in job["steps"] if "uses" in step):
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", action), f"{name} runs {action}, which is a stranger's"


# --- a release -------------------------------------------------------------------------------------------------------


def release_step(words: str) -> str:
    steps = read(ROOT / ".github" / "workflows" / "release.yml")["jobs"]["release"]["steps"]
    (found,) = [step["run"] for step in steps if words in step.get("name", "")]
    return str(found)


def test_the_changelog_begins_with_the_version_of_the_project() -> None:
    versions = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == PROJECT["version"] and len(set(versions)) == len(versions)


@pytest.mark.parametrize(("tag", "code"), [(f"v{PROJECT['version']}", 0), ("v9.9.9", 1), ("v3.11", 1)])
def test_a_release_whose_tag_is_not_the_version_stops(tag: str, code: int) -> None:
    (line,) = [line for line in release_step("The tag").splitlines() if line.startswith("grep")]
    done = subprocess.run(["sh", "-c", line], cwd=ROOT, env=os.environ | {"TAG": tag}, check=False)
    assert done.returncode == code


def test_the_zip_of_a_release_holds_the_labs(tmp_path: Path) -> None:
    (line,) = [line for line in release_step("The labs").splitlines() if line.startswith("git archive")]
    git = f"git -c safe.directory={ROOT} archive"
    line = line.replace("git archive", git).replace("build/release", str(tmp_path))
    done = subprocess.run(
        ["sh", "-c", line], cwd=ROOT, env=os.environ | {"TAG": "v1"}, capture_output=True, check=False
    )
    if b"not a git repository" in done.stderr:
        pytest.skip("this is no git checkout")
    names = zipfile.ZipFile(io.BytesIO((tmp_path / "labs-v1.zip").read_bytes())).namelist()
    assert {f"labs/{path.name}" for path in (ROOT / "labs").glob("*.ipynb")} <= set(names)


def test_the_release_of_the_models_is_the_one_that_is_asked_for() -> None:
    step = release_step("The models")
    assert assets.RELEASE.endswith("/assets") and "gh release create assets" in step
    assert "fetch --all --pack build/assets" in step and "build/assets/*" in step


# --- the image -------------------------------------------------------------------------------------------------------


def test_the_dockerfile_copies_what_there_is() -> None:
    kinds = {kind for kind, _ in instructions()}
    assert kinds <= {"FROM", "RUN", "USER", "WORKDIR", "ENV", "COPY", "EXPOSE", "ENTRYPOINT", "CMD"}
    for kind, rest in instructions():
        if kind == "COPY":
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            assert not [source for source in sources if not (ROOT / source).exists()]
        if kind in ("ENTRYPOINT", "CMD"):
            assert all(isinstance(word, str) for word in json.loads(rest)), "the form that passes signals on"


def test_what_is_copied_first_is_enough_to_install_the_course(tmp_path: Path) -> None:
    """The step that fetches packages runs before the rest is copied: in a folder with these files alone."""
    before = DOCKERFILE.split("RUN make assets")[0]
    for line in re.findall(r"^COPY (?:--\S+ )?(.+)$", before, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            place = tmp_path / (target if (ROOT / source).is_dir() else source)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__", ".*.lock"))
            else:
                shutil.copy2(ROOT / source, place)
    make = shutil.which("make") or pytest.skip("make is not installed")
    done = subprocess.run([make, "-n", "assets"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "-m course_utils fetch" in done.stdout, done.stderr
    build = "from setuptools.build_meta import build_editable as build; build('.')"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and list(tmp_path.glob("course_utils-*.whl")), done.stderr


def test_the_image_copies_the_labs_and_then_starts_what_it_was_asked_for(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "python $@"\n', encoding="utf-8")
    python.chmod(0o755)
    (entry,) = [json.loads(rest) for kind, rest in instructions() if kind == "ENTRYPOINT"]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([*entry, "echo", "a hub's", "$HOME"], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["python -m course_utils my-labs", "a hub's $HOME"], done.stderr


def test_the_image_takes_nothing_that_make_has_made() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {".git", ".venv*", "my_labs", "build", "book/_build"} <= set(ignored)


def test_the_dev_container_is_that_image() -> None:
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    place = ROOT / ".devcontainer"
    assert (place / container["build"]["dockerfile"]).is_file()
    assert (place / container["build"]["context"]).resolve() == ROOT
    assert f"--create-home --uid 1000 {container['remoteUser']}" in DOCKERFILE
    interpreter = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    (home,) = [rest for kind, rest in instructions() if kind == "WORKDIR"]
    assert interpreter == f"{home}/.venv/bin/python" and f"PATH={home}/.venv/bin:$PATH" in DOCKERFILE


def test_binder_can_run_what_it_should() -> None:
    assert (ROOT / "binder" / "postBuild").stat().st_mode & stat.S_IXUSR
    assert (ROOT / "binder" / "apt.txt").read_text(encoding="utf-8").split() == ["make"]


# --- what the weekly workflow runs -----------------------------------------------------------------------------------


def test_first_cells_that_took_the_course_from_the_repository_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert first_cells.main(["05_evaluation"]) == 1
    said = capsys.readouterr().out
    assert "05_evaluation: the course is that of the repository" in said and said.endswith("failed: 05_evaluation\n")
