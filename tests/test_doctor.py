"""The command line and its doctor: what it finds here, and what it says about computers that are worse off."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from patience import PATIENCE

from course_utils import __main__ as command_line, doctor

ROOT = Path(__file__).parent.parent
NAMES = ["Python", "torch", "device", "memory", "disk", "packages", "install", "model", "data"]


def lines_of(output: str) -> dict[str, tuple[str, str, str]]:
    """Check → (OK or FAIL, what was found, the command that mends it)."""
    pattern = re.compile(r"^(OK  |FAIL)  (\w+) +(.*)\n(?:      mend it: (.*)\n)?", re.MULTILINE)
    return {name: (state.strip(), found, remedy) for state, name, found, remedy in pattern.findall(output)}


def site_without(missing: tuple[str, ...], folder: Path) -> dict[str, str]:
    """An environment that lacks some of the installed packages: links to all the others."""
    folder.mkdir()
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            if not entry.name.startswith(missing):
                (folder / entry.name).symlink_to(entry)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


def run_doctor(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *options, "-m", "course_utils", "doctor"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)


# --- here ------------------------------------------------------------------------------------------------------------


def test_all_is_well_here(minilm_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from course_utils.models.assets import fetch

    fetch("ratings")
    assert command_line.main(["doctor"]) == 0
    output = capsys.readouterr().out
    found = lines_of(output)
    assert list(found) == NAMES
    assert {state for state, _, _ in found.values()} == {"OK"}
    assert {remedy for _, _, remedy in found.values()} == {""}
    assert output.endswith("All is well.\n")
    assert re.match(r"CPU with \d+ cores|CUDA: |MPS: ", found["device"][1])
    assert str(minilm_folder) in found["model"][1]


def test_the_floors_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=" + ".".join(map(str, doctor.PYTHON))
    stated = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    assert set(doctor._requirements()) == stated
    assert doctor._requirements()["torch"] == ">=2.11"


def test_only_the_standard_library_is_needed_to_start() -> None:
    code = "import sys, course_utils.__main__, course_utils.doctor; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {name.partition(".")[0] for name in result.stdout.split()} <= {
        *sys.stdlib_module_names,
        *("__main__", "course_utils"),
    }


# --- worse off -------------------------------------------------------------------------------------------------------


def test_no_model_and_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    assert command_line.main(["doctor"]) == 1
    output = capsys.readouterr().out
    found = lines_of(output)
    assert {name for name, (state, _, _) in found.items() if state == "FAIL"} == {"model", "data"}
    assert "2 of 9 checks failed." in output
    assert not (tmp_path / "cache").exists()  # a doctor downloads and writes nothing
    # The command it prints is the one that mends it.
    assert found["model"][2] == f"{sys.executable} -m course_utils fetch minilm"
    subprocess.run(shlex.split(found["data"][2]), check=True, capture_output=True)
    assert doctor.check_asset("ratings").ok


def test_a_damaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm_folder: Path) -> None:
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    copy = tmp_path / minilm_folder.name
    copy.mkdir()
    for file in minilm_folder.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "config.json").unlink()
    (copy / "config.json").write_text("{}", encoding="utf-8")
    finding = doctor.check_asset("minilm")
    assert not finding.ok
    assert finding.found.startswith("config.json is damaged")


def test_packages_that_are_missing(tmp_path: Path) -> None:
    missing = ("torch", "peft", "filelock")
    result = run_doctor(site_without(missing, tmp_path / "site"), "-S")
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    found = lines_of(result.stdout)
    assert list(found) == NAMES
    assert found["torch"] == ("FAIL", "torch is missing", f'{sys.executable} -m pip install "torch>=2.11"')
    assert found["device"][0] == "FAIL"
    assert found["packages"][:2] == ("FAIL", "filelock is missing; peft is missing; torch is missing")
    wanted = '"filelock>=3.13" "peft>=0.20" "torch>=2.11"'
    assert found["packages"][2] == f"{sys.executable} -m pip install {wanted}"
    # Without filelock the assets cannot be looked at; the doctor goes on and says why.
    assert found["model"][:2] == ("FAIL", "could not be checked: No module named 'filelock'")
    assert found["model"][2] == f"{sys.executable} -m pip install -e {ROOT}"
    assert found["Python"][0] == found["memory"][0] == "OK"


def test_packages_that_are_broken_or_too_old(tmp_path: Path) -> None:
    site = tmp_path / "site"
    environment = site_without(("torch", "accelerate-"), site)
    (site / "torch").mkdir()
    (site / "torch" / "__init__.py").write_text("raise OSError('libtorch_cpu.so: wrong ELF class')", encoding="utf-8")
    for name, version in (("torch", "2.13.0"), ("accelerate", "0.9")):
        (site / f"{name}-{version}.dist-info").mkdir()
        (site / f"{name}-{version}.dist-info" / "METADATA").write_text(
            f"Name: {name}\nVersion: {version}\n", encoding="utf-8"
        )
    result = run_doctor(environment, "-S")
    assert result.returncode == 1, result.stderr
    found = lines_of(result.stdout)
    state, said, remedy = found["torch"]
    assert state == "FAIL"
    assert said == "2.13.0, but its import fails: libtorch_cpu.so: wrong ELF class"
    assert remedy == f'{sys.executable} -m pip install --force-reinstall "torch>=2.11"'
    assert found["packages"][1] == "accelerate is 0.9; the course needs >=1.14"
    assert found["model"][0] == found["data"][0] == "OK"


def test_a_broken_transformers(tmp_path: Path) -> None:
    site = tmp_path / "site"
    environment = site_without(("transformers",), site)
    (site / "transformers").mkdir()
    (site / "transformers" / "__init__.py").write_text(
        "", encoding="utf-8"
    )  # an empty shell: nothing can be imported from it
    (site / "transformers-5.20.0.dist-info").mkdir()
    (site / "transformers-5.20.0.dist-info" / "METADATA").write_text(
        "Name: transformers\nVersion: 5.20.0\n", encoding="utf-8"
    )
    found = lines_of(run_doctor(environment, "-S").stdout)
    assert found["torch"][0] == "OK"
    state, said, remedy = found["packages"]
    assert state == "FAIL"
    assert said.startswith("importing course_utils.models.backbones fails: cannot import name")
    assert remedy == f'{sys.executable} -m pip install --force-reinstall "transformers<5.24,>=5.15"'


@pytest.mark.parametrize(
    ("floor", "check", "remedy"),
    [
        ("DISK_GB", "disk", "export COURSE_CACHE=FOLDER_ON_A_BIGGER_DISK"),
        ("ENVIRONMENT_GB", "disk", "delete what you do not need, or clone the course on a bigger disk"),
        ("MEMORY_GB", "memory", "close other programs and notebooks"),
    ],
)
def test_too_little_room(floor: str, check: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.CHECKS[check]().ok
    monkeypatch.setattr(doctor, floor, 1e6)  # a million gigabytes: no computer has that
    finding = doctor.CHECKS[check]()
    assert not finding.ok
    assert "1e+06 GB" in finding.found
    assert finding.remedy.startswith(remedy)


@pytest.mark.parametrize("where", ["nowhere", "elsewhere"])
def test_a_folder_that_was_moved(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line finds the package in its folder; a notebook runs in another one, and would not."""
    shell = tmp_path / "site" / "course_utils"
    shell.mkdir(parents=True)
    (shell / "__init__.py").write_text(
        "" if where == "elsewhere" else "raise ImportError('no such path')", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(shell.parent))
    finding = doctor.check_install()
    assert not finding.ok
    assert {"nowhere": "moved or renamed", "elsewhere": f"the one in {shell.parent}"}[where] in finding.found
    assert finding.remedy.startswith(f"make   (in {ROOT}; without make: ")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    from course_utils.models import assets

    def nobody(*_: object, **__: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("COURSE_CACHE", raising=False)
    monkeypatch.setattr(assets, "user_cache_path", nobody)
    for check in ("disk", "model", "data"):
        finding = doctor.CHECKS[check]()
        assert not finding.ok and finding.remedy == "export COURSE_CACHE=FOLDER"
        assert "Could not determine home directory" in finding.found


def test_too_old_a_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PYTHON", (99, 1))
    finding = doctor.check_python()
    assert not finding.ok
    assert "needs 99.1 or newer" in finding.found
    assert finding.remedy.startswith("python99.1 -m venv")


# --- the command line ------------------------------------------------------------------------------------------------


def test_help_is_quick_and_names_every_command() -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "course_utils", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0
    assert all(name in result.stdout for name in ("doctor", "fetch", "notebooks", "study", "bench"))
    assert " torch" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND"),
        (["cure"], "invalid choice: 'cure'"),
        (["doctor", "--fast"], "doctor does not know --fast"),
        (["doctor", "minilm"], "doctor does not know minilm"),
        (["fetch", "--force"], "fetch does not know --force"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_fetch_prints_the_folders(minilm_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["fetch", "minilm"]) == 0
    assert capsys.readouterr().out == f"minilm: {minilm_folder}\n"
    assert command_line.main(["fetch"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["minilm", "ratings"]


def test_fetching_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["fetch", "bert"]) == 1
    assert capsys.readouterr().err == "there is no asset 'bert'; the course has minilm, ratings, smollm2\n"


@pytest.mark.parametrize("command", ["notebooks", "study", "bench"])
def test_options_reach_the_command_that_reads_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line.main([command, "--help"])
    assert stopped.value.code == 0
    assert command in capsys.readouterr().out.splitlines()[0]
