"""The bibliography: each work can be found, is cited, and stands there once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIBLIOGRAPHY = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
ENTRIES = re.findall(r"^@(\w+)\{([^,\s]+),\n(.*?)^\}", BIBLIOGRAPHY, re.MULTILINE | re.DOTALL)
KEYS = [key for _, key, _ in ENTRIES]
FIELDS = {key: dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?\s*$", body, re.MULTILINE)) for _, key, body in ENTRIES}
#: Works that have neither a DOI nor an arXiv number, and can only be given by their address.
ADDRESS_ONLY = {"mangrulkar2022peft", "krippendorff2011alpha", "holm1979"}


def cited() -> dict[str, set[str]]:
    """Key → the files that cite it."""
    files = [*ROOT.glob("book/*.md"), *ROOT.glob("book/data/*.yml"), *ROOT.glob("solutions/*.py")]
    found: dict[str, set[str]] = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        groups = re.findall(r"\{cite:\w+\}`([^`]+)`", text) if file.suffix != ".yml" else []
        if file.suffix == ".yml":
            lines = [line for line in text.splitlines() if not line.startswith("#")]  # they say how it is written
            text = "\n".join(lines)
            groups = re.findall(r"\{cite:\w+\}`([^`]+)`", text) + re.findall(r"\bcite: (\w+)", text)
        for key in (key.strip() for group in groups if "{{" not in group for key in group.split(",")):
            found.setdefault(key, set()).add(file.name)
    return found


def test_every_entry_was_read() -> None:
    assert len(ENTRIES) == len(re.findall(r"^@", BIBLIOGRAPHY, re.MULTILINE)) > 30


def test_keys_are_unique() -> None:
    assert len(KEYS) == len(set(KEYS))


@pytest.mark.parametrize("key", KEYS)
def test_each_work_can_be_found(key: str) -> None:
    fields = FIELDS[key]
    assert {"title", "author", "year"} <= set(fields)
    assert not {name for name, value in fields.items() if not value.strip()}
    if "eprint" in fields:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"])
        assert fields["archiveprefix"] == "arXiv"
        assert fields.get("url", f"https://arxiv.org/abs/{fields['eprint']}").endswith(fields["eprint"]) or (
            "doi" in fields
        )
        first = int(fields["eprint"][:2])
        assert int(fields["year"]) % 100 >= first, "published before it was on arXiv"
    if "doi" in fields:
        assert re.fullmatch(r"10\.\d{4,9}/\S+", fields["doi"])
    if not {"doi", "eprint"} & set(fields):
        assert key in ADDRESS_ONLY, f"{key} has neither a DOI nor an arXiv number"
        assert fields["url"].startswith("https://")


def test_no_identifier_stands_twice() -> None:
    for name in ("doi", "eprint", "title"):
        values = [fields[name].lower() for fields in FIELDS.values() if name in fields]
        assert len(values) == len(set(values)), name


def test_every_entry_is_cited() -> None:
    assert not set(KEYS) - set(cited())


def test_every_citation_has_an_entry() -> None:
    assert not {key: files for key, files in cited().items() if key not in KEYS}


def test_address_only_works_exist() -> None:
    assert set(KEYS) >= ADDRESS_ONLY
