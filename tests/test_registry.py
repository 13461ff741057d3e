"""Every method of the package is in the registry, and every list of methods is a view of it: a forgotten line fails."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import yaml
from cases import CASES, Case

from course_utils import methods
from course_utils.checkpoints import save
from course_utils.methods import LoRAConfig, MethodConfig, inject
from course_utils.methods.registry import METHODS, Twin, studied
from course_utils.methods.wrapping import TargetsConfig
from course_utils.plots.map_of_peft import FAMILIES
from course_utils.training import memory
from course_utils.workshop.experiments.pairs import PAIRS

ROOT = Path(__file__).parents[1]
PUBLISHED_RATES = yaml.safe_load((ROOT / "book" / "data" / "learning_rates.yml").read_text("utf-8"))
PAPERS = set(re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "book" / "references.bib").read_text("utf-8"), re.MULTILINE))
ROWS = pytest.mark.parametrize("name", METHODS)


def subclasses(cls: Any) -> set[type[MethodConfig]]:
    return {cls}.union(*(subclasses(child) for child in cls.__subclasses__()))


def configurations() -> list[type[MethodConfig]]:
    """Every method of the package: each concrete configuration in any of its modules."""
    for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
        if module.name != f"{methods.__name__}.nf4_kernel":  # needs a GPU's compiler
            importlib.import_module(module.name)
    found = {
        cls
        for cls in subclasses(MethodConfig)
        if cls.__module__.startswith(f"{methods.__name__}.")
        and not inspect.isabstract(cls)
        and cls is not TargetsConfig
    }
    return sorted(found, key=lambda cls: cls.__name__)


def forgotten(cls: type[MethodConfig]) -> list[str]:
    """The places where this method should stand and does not."""
    rows = [row for row in METHODS.values() if type(row.config) is cls]
    places = {
        "name of its own": "name" in vars(cls),
        "methods.__all__": cls.__name__ in methods.__all__ and getattr(methods, cls.__name__, None) is cls,
        "registry.METHODS": bool(rows),
        "tests/cases.py": any(type(case.config) is cls for case in CASES),
    }
    return [place for place, there in places.items() if not there]


@pytest.mark.parametrize("cls", configurations(), ids=lambda cls: cls.__name__)
def test_no_place_of_a_method_is_forgotten(cls: type[MethodConfig]) -> None:
    assert forgotten(cls) == []


def test_there_are_methods_to_check() -> None:
    assert len(configurations()) >= 19 and LoRAConfig in configurations()


def test_a_method_in_no_list_is_noticed() -> None:
    @dataclass(frozen=True)
    class NewConfig(LoRAConfig):
        name: ClassVar[str] = "new"

    assert forgotten(NewConfig) == ["methods.__all__", "registry.METHODS", "tests/cases.py"]
    assert NewConfig not in configurations()  # it is no part of the package


# --- the row itself -------------------------------------------------------------------------------------------------


@ROWS
def test_a_row_names_a_paper_a_page_and_reasons(name: str) -> None:
    row = METHODS[name]
    page = ROOT / "book" / f"{row.chapter}.md"
    assert page.is_file()
    assert row.paper == "" or row.paper in PAPERS
    assert row.paper == "" or row.paper in page.read_text("utf-8"), "the chapter should cite the paper"
    if isinstance(row.learning_rates, tuple):
        assert row.learning_rates and list(row.learning_rates) == sorted(set(row.learning_rates))
    for reason in (row.learning_rates, row.twin):
        assert not isinstance(reason, str) or len(reason.split()) > 3, "say why there is none"
    if isinstance(row.twin, Twin):
        arguments = inspect.signature(getattr(peft, row.twin.config)).parameters
        assert set(row.twin.arguments) <= set(arguments)
        assert type(row.twin.ours or row.config) is type(row.config)


def test_titles_tell_the_rows_apart() -> None:
    titles = [row.full_title for row in METHODS.values()]
    assert len(set(titles)) == len(titles)


# --- the views ------------------------------------------------------------------------------------------------------


@ROWS
def test_the_study_and_the_bench_hold_the_row(name: str) -> None:
    row = METHODS[name]
    assert (name in studied()) == isinstance(row.learning_rates, tuple)
    assert (name in PAIRS) == isinstance(row.twin, Twin)
    if name in studied():
        assert studied()[name] is row
        assert any(known in PUBLISHED_RATES for known in (name, name.split("_")[0])), "a line in learning_rates.yml"


def test_the_lists_hold_nothing_else() -> None:
    assert set(studied()) <= set(METHODS) and set(PAIRS) <= set(METHODS)
    assert {row.memory for row in METHODS.values()} - {""} == set(memory.MEMORY_METHODS)


def test_the_map_shows_each_method_in_its_family() -> None:
    shown = {name: family for family, names in FAMILIES.items() for name in names}
    assert shown == {name: row.family.title for name, row in METHODS.items() if row.pretrained}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_checkpoint_is_peft_s_where_peft_has_the_method(case: Case, tmp_path: Path) -> None:
    (in_peft,) = {row.in_peft for row in METHODS.values() if type(row.config) is type(case.config)}
    save(inject(case.make(case.kinds[0]), case.config), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert ("adapter_config.json" if in_peft else "tuning_config.json") in names
    assert not {"adapter_config.json", "tuning_config.json"} <= names
