"""The pages of the part "Reference": complete, and made from the data that they name."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from course_utils.methods.registry import studied

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK / "_ext"))

import data_pages  # noqa: E402

sys.path.pop(0)

QUALITY = json.loads((BOOK / "results" / "quality.json").read_text(encoding="utf-8"))
SECONDS = json.loads((BOOK / "results" / "lab_seconds.json").read_text(encoding="utf-8"))
RATES: dict[str, str] = yaml.safe_load((BOOK / "data" / "learning_rates.yml").read_text(encoding="utf-8"))
PUBLISHED = data_pages.load(BOOK / "data" / "published.yml")
NOTEBOOKS = sorted(file.stem for file in (ROOT / "labs").glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(autouse=True)
def extension_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BOOK / "_ext"))


# --- the glossary ----------------------------------------------------------------------------------------------------


def glossary() -> list[tuple[list[str], str]]:
    """The lines of terms and the explanation of each entry."""
    text = (BOOK / "glossary.md").read_text(encoding="utf-8")
    entries = []
    for block in re.findall(r"```\{glossary\}\n(.*?)```", text, re.DOTALL):
        for entry in block.strip("\n").split("\n\n"):
            lines = entry.split("\n")
            terms = [line for line in lines if not line.startswith(" ")]
            entries.append((terms, " ".join(line.strip() for line in lines if line.startswith(" "))))
    return entries


GLOSSARY = glossary()
ENGLISH = [terms[0].partition(" : ")[0] for terms, _ in GLOSSARY]


def test_the_glossary_has_both_languages() -> None:
    assert len(GLOSSARY) >= 90
    for terms, meaning in GLOSSARY:
        assert len(terms) == 2, terms
        english, chinese = terms
        assert not re.search(r"[\u4e00-\u9fff]", english)
        assert chinese.endswith(" : 中文") and re.search(r"[\u4e00-\u9fff]", chinese.removesuffix(" : 中文")), chinese
        assert len(meaning.split()) >= 3 and meaning.endswith("."), english


def test_no_term_stands_twice() -> None:
    terms = [line.partition(" : ")[0].lower() for lines, _ in GLOSSARY for line in lines]
    assert len(terms) == len(set(terms))


def test_the_glossary_is_in_order() -> None:
    letters = [re.sub(r"[^a-z0-9]", "", term.lower()) for term in ENGLISH]
    assert letters == sorted(letters)


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("fine-tuning", "微调"),
        ("full fine-tuning", "全量微调"),
        ("hyper-parameter search", "超参数搜索"),
        ("continuous prompt", "连续提示"),
        ("adapter", "适配器"),
        ("low rank", "低秩"),
        ("knowledge distillation", "知识蒸馏"),
        ("quantisation", "量化"),
        ("validation set", "验证集"),
    ],
)
def test_terms_that_are_often_mixed_up(english: str, chinese: str) -> None:
    [terms] = [terms for terms, _ in GLOSSARY if terms[0] == english]
    assert terms[1] == f"{chinese} : 中文"


def test_every_linked_term_exists() -> None:
    known = {term.lower() for term in ENGLISH}
    for page in BOOK.glob("*.md"):
        for asked in re.findall(r"\{term\}`([^`]+)`", page.read_text(encoding="utf-8")):
            term = re.sub(r".*<(.+)>", r"\1", asked, flags=re.DOTALL)
            assert " ".join(term.split()).lower() in known, f"{page.name}: {asked}"


# --- published results -----------------------------------------------------------------------------------------------


def test_published_rows_cite_known_works() -> None:
    works = set(re.findall(r"^@\w+\{([^,\s]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    assert sum(len(setting["rows"]) for setting in PUBLISHED) >= 20
    assert not {setting["cite"] for setting in PUBLISHED} - works
    for text in RATES.values():
        for keys in re.findall(r"\{cite:p\}`([^`]+)`", text):
            assert set(keys.split(",")) <= works


def test_a_method_has_one_row_in_a_setting() -> None:
    for setting in PUBLISHED:
        names = [(row["method"], row.get("trained")) for row in setting["rows"]]
        assert len(names) == len(set(names)), setting.name


#: Methods of the study that no published row here is about.
#: row of peft_gsm8k.json → the row of published.yml that quotes it, and which of its values it is
QUOTED = {
    "rslora64": ("rsLoRA of rank 64", 0),
    "lora64": ("LoRA of rank 64", 0),
    "lora32": ("LoRA of rank 32", 0),
    "full": ("full fine-tuning", 0),
    "dora": ("DoRA", 0),
    "prefix_low": ("prefix tuning", 0),
    "prefix": ("prefix tuning", 1),
    "ia3_low": ("(IA)³", 0),
    "ia3": ("(IA)³", 1),
    "adalora": ("AdaLoRA", 0),
    "vera": ("VeRA", 0),
    "p_tuning": ("P-Tuning", 0),
    "prompt_low": ("prompt tuning", 0),
    "prompt": ("prompt tuning", 1),
}


def test_quoted_numbers_are_those_of_the_stored_copy() -> None:
    """The values of peft's comparison, row by row, and their memory as the field that the page names."""
    copy = json.loads((BOOK / "results" / "peft_gsm8k.json").read_text(encoding="utf-8"))
    assert re.fullmatch("[0-9a-f]{40}", copy["at_commit"])
    accuracies, costs = (
        {str(row["method"]): str(row["value"]) for row in setting["rows"]}
        for setting in PUBLISHED
        if "GSM8K" in setting["setting"]
    )
    assert set(QUOTED) == set(copy["rows"])
    assert sum(len(value.split(" or ")) for value in accuracies.values()) == len(QUOTED)
    for name, (method, place) in QUOTED.items():
        stored = copy["rows"][name]
        assert f"{100 * stored['accuracy']:.1f}" == accuracies[method].split(" or ")[place], name
        assert (stored["seed"], stored["n"]) == (0, 1319)
    for name, method in (("full", "full fine-tuning"), ("lora32", "LoRA of rank 32")):
        stored = copy["rows"][name]
        said = f"{stored['peak_gib']:.1f} GiB; {stored['mean_gib']:.1f} GiB; {stored['seconds']} s"
        assert said == costs[method]


def test_pages_quote_the_stored_copy() -> None:
    """The numbers that pages of prose repeat from it: a renewed copy must not leave an old one behind."""
    copy = json.loads((BOOK / "results" / "peft_gsm8k.json").read_text(encoding="utf-8"))["rows"]
    shown = {f"{100 * row['accuracy']:.1f}" for row in copy.values()}
    for page, line in (
        (path, line)
        for path in BOOK.glob("[0-9]*.md")
        for line in path.read_text(encoding="utf-8").replace("\n", " ").split(". ")
        if "Llama 3.2 3B" in line and "solve" in line
    ):
        quoted = set(re.findall(r"(\d\d?\.\d)%", line))
        assert quoted <= shown, f"{page.name}: {quoted - shown}"


NOT_PUBLISHED = {
    *("head_only", "last_layers", "scratch", "houlsby", "pfeiffer", "parallel", "pissa", "dora", "adalora", "rslora"),
    *("vera", "qlora"),
}


def test_a_method_of_the_study_stands_beside_a_published_one() -> None:
    named = {name for setting in PUBLISHED for row in setting["rows"] for name in row.get("ours", "").split()}
    forgotten = [name for name in studied() if name.split("_")[0] not in {known.split("_")[0] for known in named}]
    assert not set(forgotten) - NOT_PUBLISHED, "name them in published.yml as `ours`, or in NOT_PUBLISHED"


ROW = "- setting: A\n  unit: points\n  cite: hu2021lora\n  rows:\n  - {method: LoRA, value: 1}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ROW.replace("  cite: hu2021lora\n", ""), "1: A: 'cite' is a required property"),
        (ROW.replace("value: 1", "colour: red, value: 1"), "5: LoRA: Additional properties are not allowed ('colour'"),
        (
            ROW.replace("value: 1", "value: [1]"),
            "5: LoRA: value [1] is not of type 'number', 'string'; expected a number or",
        ),
        (ROW + ROW, "6: A stands in line 1 already"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "published.yml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(data_pages.DataError) as error:
        data_pages.load(file)
    assert f"{error.value.line}: {error.value}".startswith(said)


# --- learning rates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expected"),
    [("lora", "a"), ("lora_rank_64", "a"), ("lora_plus", "b"), ("lora_plus_x", "b"), ("dora", "none noted")],
)
def test_a_variant_falls_back_on_its_family(method: str, expected: str) -> None:
    assert data_pages.published_rate({"lora": "a", "lora_plus": "b"}, method) == expected


@pytest.mark.parametrize(
    ("rate", "tried", "expected"),
    [
        (2e-3, [5e-3, 2e-3, 5e-4], ""),
        (5e-3, [5e-3, 2e-3], " (the largest tried)"),
        (5e-5, [1e-4, 5e-5], " (the smallest tried)"),
        (1e-3, [1e-3], ""),
    ],
)
def test_a_rate_at_the_edge_is_called_so(rate: float, tried: list[float], expected: str) -> None:
    assert data_pages.edge(rate, tried) == expected


def test_every_method_of_the_study_has_its_line() -> None:
    assert not [name for name in studied() if data_pages.published_rate(RATES, name) not in RATES.values()]


# --- times -----------------------------------------------------------------------------------------------------------


def test_every_notebook_was_timed() -> None:
    assert not [stem for stem in NOTEBOOKS if {"lab", "solution"} - set(SECONDS["seconds"].get(stem, {}))]


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_a_lab_says_its_time_at_the_top(stem: str) -> None:
    slower = max(SECONDS["seconds"][stem].values())
    for folder in ("labs", "solutions"):
        cells = json.loads((ROOT / folder / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
        said = re.search(r"about (\d+) s", "".join(cells[0]["source"]))
        assert said, f"{folder}/{stem}"
        assert 0 <= int(said[1]) - slower < 5


# --- the pages, built ------------------------------------------------------------------------------------------------

PAGES = ("learning_rates", "published", "glossary", "times")


def build(folder: Path, quality: dict[str, Any], seconds: dict[str, Any]) -> tuple[dict[str, str], str]:
    """A small book of the four pages, with these results."""
    source = folder / "source"
    for name in ("book/data", "book/results", "labs"):
        (source / name).mkdir(parents=True)
    for name in ("learning_rates.yml", "published.yml", "chapters.yml"):
        (source / "book" / "data" / name).write_text(
            (BOOK / "data" / name).read_text(encoding="utf-8"), encoding="utf-8"
        )
    (source / "book" / "references.bib").write_text(
        (BOOK / "references.bib").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (source / "book" / "results" / "quality.json").write_text(json.dumps(quality), encoding="utf-8")
    (source / "book" / "results" / "lab_seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
    for name in PAGES:
        (source / "book" / f"{name}.md").write_text((BOOK / f"{name}.md").read_text(encoding="utf-8"), encoding="utf-8")
    listed = "\n".join(f"book/{name}" for name in PAGES)
    (source / "index.md").write_text(f"# Book\n\n```{{toctree}}\n{listed}\n```\n", encoding="utf-8")
    warnings = io.StringIO()
    options = {
        "extensions": ["myst_nb", "data_pages", "sphinxcontrib.bibtex"],
        "bibtex_bibfiles": ["book/references.bib"],
        "suppress_warnings": ["bibtex.duplicate_citation"],
        "myst_enable_extensions": ["dollarmath"],
        "nb_execution_mode": "off",
        # Sphinx writes into the default of this setting, and the next project of the same process finds it there.
        "source_suffix": {".md": "myst-nb", ".ipynb": "myst-nb"},
    }
    with patch_docutils(), docutils_namespace():
        app = Sphinx(source, None, folder / "html", folder / "doctrees", "html", options, status=None, warning=warnings)
        app.build()
    names = [*(f"book/{name}" for name in PAGES), "index", "genindex"]
    return {name: (folder / "html" / f"{name}.html").read_text(encoding="utf-8") for name in names}, warnings.getvalue()


def plain(html: str) -> str:
    """The text of a page, spaces joined."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The pages with one method and one chapter more than there are."""
    quality = json.loads(json.dumps(QUALITY))
    quality["methods"]["lora_new"] = {**quality["methods"]["lora"], "title": "A new method", "learning_rate": 0.077}
    quality["rates"]["lora_new"] = [{"learning_rate": rate} for rate in (0.077, 0.7, 0.007)]
    quality["methods"]["bitfit"] = {**quality["methods"]["lora"], "accuracy": {"mean": 0.123}}
    seconds = {**SECONDS, "seconds": {**SECONDS["seconds"], "22_comparison": {"lab": 60.0, "solution": 30.0}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BOOK / "_ext"))
        pages, warnings = build(tmp_path_factory.mktemp("reference"), quality, seconds)
    assert "doc reference target not found" in warnings or not warnings  # pages that this small book has not
    assert not re.findall(r"WARNING: (?!unknown document|.*not found)[^\n]*", warnings)
    return pages


def test_every_method_stands_in_learning_rates(built: dict[str, str]) -> None:
    page = plain(built["book/learning_rates"])
    for method in QUALITY["methods"].values():
        assert method["title"] in page
    assert "A new method 0.077" in page  # the table has grown
    assert "0.007, 0.077, 0.7" in page
    assert built["book/learning_rates"].count('scope="col"') >= 5


def test_ours_stand_beside_the_published(built: dict[str, str]) -> None:
    page = plain(built["book/published"])
    assert "BitFit 0.1M 93.7 12.3%" in page
    assert "values may not" in page
    assert built["book/published"].count("<caption") == len(PUBLISHED)


def test_times_lists_every_notebook_and_the_sum(built: dict[str, str]) -> None:
    page = plain(built["book/times"])
    titles = {chapter["file"]: chapter["title"] for chapter in data_pages.load(BOOK / "data" / "chapters.yml")}
    for stem in [*NOTEBOOKS, "22_comparison"]:
        assert titles[stem] in page
    total = sum(kinds["lab"] for stem, kinds in SECONDS["seconds"].items() if stem != "22_comparison") + 60
    assert f"all together {total / 60:.1f} min" in page
    assert "GPU," not in page  # a column only where one was measured


def test_the_index_is_in_the_contents_and_useful(built: dict[str, str]) -> None:
    assert re.search(r'href="genindex\.html"[^>]*>Index of terms', built["index"])
    index = plain(built["genindex"])
    for term in ("knowledge distillation", "知识蒸馏", "QLoRA", "learning rate", "of each method"):
        assert term in index


def test_chinese_is_marked_as_such(built: dict[str, str]) -> None:
    page = built["book/glossary"]
    marked = re.findall(r'<dt id="[^"]+">[^<]*<span lang="zh-Hans">([^<]+)</span>', page)
    assert len(marked) == len(GLOSSARY)
    assert "微调" in marked
    assert not re.search(r"[\u4e00-\u9fff]", re.sub(r'<span lang="zh-Hans">[^<]+</span>', "", page))


def test_a_column_for_a_gpu_where_one_was_measured(tmp_path: Path) -> None:
    seconds = {**SECONDS, "gpu_seconds": {NOTEBOOKS[0]: {"lab": 11.0, "solution": 12.0}}}
    page = plain(build(tmp_path, QUALITY, seconds)[0]["book/times"])
    assert "GPU, lab GPU, solution" in page
    assert "11 s 12 s" in page and "–" in page


def test_the_first_page_leads_to_the_reference() -> None:
    text = (BOOK / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\{doc\}`(?:[^`<]*<)?([\w/.]+)>?`", text))
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    part = next(part for part in toc["parts"] if part["caption"] == "Reference")
    assert {entry["file"].removeprefix("book/") for entry in part["chapters"]} <= linked
    assert "genindex" in text
    for part in toc["parts"]:
        assert f"*{part['caption']}*" in text, "the first page names every part"
