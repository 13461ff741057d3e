"""Say whether this computer can run the course, and print the command that mends what cannot.

Only the standard library is imported at the top: a doctor that falls ill with its patient is of no use.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "course-utils"
PYTHON = (3, 11)
MEMORY_GB = 2.0  # full fine-tuning of the default backbone peaks at 1.5 GB
MEMORY_COMFORT_GB = 4.0
DISK_GB = 1.0
ENVIRONMENT_GB = 0.5  # for what pip brings when a package is mended; the environment itself is there already
PACKAGE = next(above for above in Path(__file__).resolve().parents if above.name == "course_utils")
#: Between them they import every package that a lab needs.
MODULES = ("course_utils.models.backbones", "course_utils.training", "course_utils.checkpoints")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        ok: whether the course can run with it.
        found: one line for the reader.
        remedy: the command that mends it; empty when all is well.
    """

    ok: bool
    found: str
    remedy: str = ""


def main() -> int:
    """Run every check, print one line each, and return 1 if one failed, else 0."""
    failed = 0
    for name, check in CHECKS.items():
        try:
            finding = check()
        except Exception as error:  # a broken package may raise anything
            finding = Finding(False, f"could not be checked: {_first_line(error)}", _install_course())
        print(f"{'OK  ' if finding.ok else 'FAIL'}  {name:<8}  {finding.found}", flush=True)
        if not finding.ok:
            failed += 1
            print(f"      mend it: {finding.remedy}", flush=True)
    print("All is well." if not failed else f"{failed} of {len(CHECKS)} checks failed.")
    return 1 if failed else 0


def check_python() -> Finding:
    """Python's version."""
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= PYTHON:
        return Finding(True, found)
    floor = ".".join(map(str, PYTHON))
    return Finding(
        False,
        f"{found}; the course needs {floor} or newer",
        f"python{floor} -m venv .venv   (get Python {floor} from www.python.org first if the command is not found)",
    )


def check_torch() -> Finding:
    """Whether torch is new enough and can be imported."""
    finding = _installed("torch")
    if not finding.ok:
        return finding
    try:
        importlib.import_module("torch")
    except Exception as error:
        return Finding(False, f"{finding.found}, but its import fails: {_first_line(error)}", _reinstall("torch"))
    return finding


def check_device() -> Finding:
    """Where training will run. A CPU is enough."""
    try:
        import torch
    except Exception:
        return Finding(False, "cannot be told without torch", _reinstall("torch"))
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        return Finding(True, f"CUDA: {torch.cuda.get_device_name(0)}, {memory:.0f} GB")
    if torch.backends.mps.is_available():
        return Finding(True, "MPS: the GPU of an Apple chip")
    from course_utils.training.precision import bf16_factor, describe

    speed = f"{describe(bf16_factor())}, measured"
    return Finding(True, f"CPU with {os.cpu_count()} cores (enough: the labs are made for it); {speed}")


def check_memory() -> Finding:
    """The memory that is free now."""
    import psutil

    free = psutil.virtual_memory().available / 1e9
    if free < MEMORY_GB:
        return Finding(
            False,
            f"{free:.1f} GB free; the labs need {MEMORY_GB:g} GB",
            "close other programs and notebooks, or open the lab in Colab",
        )
    advice = "" if free >= MEMORY_COMFORT_GB else f" ({MEMORY_COMFORT_GB:g} GB are more comfortable)"
    return Finding(True, f"{free:.1f} GB free{advice}")


def check_disk() -> Finding:
    """Room where the model and the data are kept, and where the packages are."""
    from course_utils.models.assets import AssetError, cache_folder, cache_remedy

    try:
        folder = cache_folder()
    except AssetError as error:
        return Finding(False, _first_line(error), cache_remedy())
    free, room = _free_gb(folder), _free_gb(Path(sys.prefix))
    if free < DISK_GB:
        return Finding(
            False,
            f"{free:.1f} GB free in {folder}; the course needs {DISK_GB:g} GB",
            f"{cache_remedy()}_ON_A_BIGGER_DISK   (or delete what you do not need)",
        )
    if room < ENVIRONMENT_GB:
        return Finding(
            False,
            f"{room:.1f} GB free on the disk of the packages, {sys.prefix}; an update needs {ENVIRONMENT_GB:g} GB",
            "delete what you do not need, or clone the course on a bigger disk and run make there",
        )
    return Finding(True, f"{free:.1f} GB free in {folder}")


def _free_gb(folder: Path) -> float:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free / 1e9


def check_install() -> Finding:
    """Whether a notebook, which runs in another folder, finds this very course."""
    code = "import course_utils; print(course_utils.__file__)"
    options = ["-S"] if sys.flags.no_site else []
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, *options, "-c", code],
            cwd=elsewhere,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    remedy = f"make   (in {_quoted(str(PACKAGE.parent))}; without make: {_install_course()})"
    if done.returncode:
        reason = "the folder of the course was moved or renamed, or the course was never installed"
        return Finding(False, f"a notebook cannot import the course: {reason}", remedy)
    found = Path(done.stdout.strip()).resolve().parent
    if found != PACKAGE:
        return Finding(False, f"a notebook would use another copy of the course, the one in {found.parent}", remedy)
    return Finding(True, f"notebooks use the course in {PACKAGE.parent}")


def check_packages() -> Finding:
    """Every package that the course depends on: there, new enough, and importable."""
    requirements = _requirements()
    wrong = [finding for name in requirements if not (finding := _installed(name)).ok]
    if wrong:
        specifiers = " ".join(finding.remedy.partition(" install ")[2] for finding in wrong)
        return Finding(False, "; ".join(finding.found for finding in wrong), _pip(specifiers))
    if "torch" in sys.modules:  # else its own line says what is wrong, and nothing below could be imported
        for module in MODULES:
            try:
                importlib.import_module(module)
            except Exception as error:
                package = (getattr(error, "name", None) or "").partition(".")[0]
                remedy = _reinstall(package) if package in requirements else _install_course("--force-reinstall ")
                return Finding(False, f"importing {module} fails: {_first_line(error)}", remedy)
    return Finding(True, f"all {len(requirements)} are there and new enough")


def check_asset(name: str) -> Finding:
    """Whether an asset's files lie in the cache, each with the right hash. Nothing is downloaded."""
    from course_utils.models.assets import ASSETS, AssetError, asset_folder, cache_remedy, problems

    try:
        folder = asset_folder(ASSETS[name])
    except AssetError as error:
        return Finding(False, _first_line(error), cache_remedy())
    found = problems(ASSETS[name], folder)
    if found:
        return Finding(False, "; ".join(found), f"{_quoted(sys.executable)} -m course_utils fetch {name}")
    return Finding(True, f"{name}, verified, in {folder}")


CHECKS: dict[str, Callable[[], Finding]] = {
    "Python": check_python,
    "torch": check_torch,
    "device": check_device,
    "memory": check_memory,
    "disk": check_disk,
    "packages": check_packages,
    "install": check_install,
    "model": lambda: check_asset("minilm"),
    "data": lambda: check_asset("ratings"),
}


def _requirements() -> dict[str, str]:
    """Package → the versions that the course takes, as pyproject.toml says; read from the installed course."""
    from packaging.requirements import Requirement

    parsed = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    return {r.name: str(r.specifier) for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})}


def _installed(package: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    wanted = _requirements()[package]
    remedy = _pip(f'"{package}{wanted}"')
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Finding(False, f"{package} is missing", remedy)
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding(False, f"{package} is {version}; the course needs {wanted}", remedy)
    return Finding(True, version)


def _reinstall(package: str) -> str:
    return _pip(f'--force-reinstall "{package}{_requirements()[package]}"')


def _install_course(option: str = "") -> str:
    return _pip(f"{option}-e {_quoted(str(PACKAGE.parent))}")


def _pip(what: str) -> str:
    return f"{_quoted(sys.executable)} -m pip install {what}"


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
