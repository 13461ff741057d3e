"""Say whether this computer can run the course, and print the command that mends what cannot.

Only the standard library is imported at the top: a doctor that falls ill with its patient is of no use.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "course-utils"
PYTHON = (3, 11)
MEMORY_GB = 2.0  # full fine-tuning of the default backbone peaks at 1.5 GB
MEMORY_COMFORT_GB = 4.0
DISK_GB = 1.0
#: Between them they import every package that a lab needs.
MODULES = ("course_utils.backbones", "course_utils.training", "course_utils.checkpoints")


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
    """Room where the model and the data are kept."""
    from course_utils.assets import CACHE_VARIABLE, cache_folder

    folder = cache_folder()
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free / 1e9
    if free >= DISK_GB:
        return Finding(True, f"{free:.1f} GB free in {folder}")
    setting = f"set {CACHE_VARIABLE}=" if os.name == "nt" else f"export {CACHE_VARIABLE}="
    return Finding(
        False,
        f"{free:.1f} GB free in {folder}; the course needs {DISK_GB:g} GB",
        f"{setting}FOLDER_ON_A_BIGGER_DISK   (or delete what you do not need)",
    )


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
    from course_utils.assets import ASSETS, asset_folder, problems

    folder = asset_folder(ASSETS[name])
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
    return _pip(f"{option}-e {_quoted(str(Path(__file__).resolve().parent.parent))}")


def _pip(what: str) -> str:
    return f"{_quoted(sys.executable)} -m pip install {what}"


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
