"""Texts of one's own: each fault of a file gets a sentence that names its place, and nothing is learned by heart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from course_utils.checkpoints import load
from course_utils.data.errors import DataError
from course_utils.data.own_data import read_own
from course_utils.data.splits import near_duplicate_groups
from course_utils.models.backbones import load_classifier

WORDS = [
    *("plum", "river", "stone", "candle", "winter", "market", "ladder", "violin", "copper", "meadow", "harbour"),
    *("pencil", "thunder", "velvet", "garden"),
]


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts that are not near each other."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, 6)) + f" {'abcdefghij'[number % 10] * 4}{number}" for number in range(count)]


def csv_of(folder: Path, rows: Sequence[Any], name: str = "own.csv", between: str = ",") -> Path:
    file = folder / name
    file.write_text("".join(between.join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def good(tmp_path: Path) -> list[list[str]]:
    return [["text", "label"], *([text, ("no", "yes", "maybe")[n % 3]] for n, text in enumerate(texts(120)))]


def everything(own: object) -> list[str]:
    return [text for split in own.splits.values() for text in split["text"]]  # type: ignore[attr-defined]


def test_a_file_is_split_with_all_classes_on_each_side(tmp_path: Path, good: list[list[str]]) -> None:
    own = read_own(csv_of(tmp_path, good))
    assert own.labels == ("maybe", "no", "yes")
    sizes = {name: len(split) for name, split in own.splits.items()}  # about 65, 10 and 25 per cent
    assert abs(sizes["train"] - 78) <= 2 and abs(sizes["validation"] - 12) <= 2 and abs(sizes["test"] - 30) <= 2
    assert sorted(everything(own)) == sorted(str(row[0]) for row in good[1:])
    assert all(set(split["label"]) == {0, 1, 2} for split in own.splits.values())
    labels = {row[0]: row[1] for row in good[1:]}
    split = own.splits["test"]
    assert all(own.labels[label] == labels[text] for text, label in zip(split["text"], split["label"], strict=True))
    assert everything(own) == everything(read_own(csv_of(tmp_path, good)))
    assert everything(own) != everything(read_own(csv_of(tmp_path, good), seed=1))
    assert "maybe" in str(own) and "30" in str(own)


def test_near_duplicates_stay_on_one_side(tmp_path: Path, good: list[list[str]]) -> None:
    twins = [[f"{row[0]}!", row[1]] for row in good[1:]]
    own = read_own(csv_of(tmp_path, [*good, *twins]))
    home = {text: name for name, split in own.splits.items() for text in split["text"]}
    assert all(home[str(row[0])] == home[f"{row[0]}!"] for row in good[1:])
    double = 240 - len(set(near_duplicate_groups(everything(own)).tolist()))
    assert double >= 120 and f"another, and stand on its side: {double}" in own.remarks[-1]


def test_a_group_stays_on_one_side(tmp_path: Path, good: list[list[str]]) -> None:
    rows = [["text", "label", "author"], *([*row, f"author {n // 6}"] for n, row in enumerate(good[1:]))]
    own = read_own(csv_of(tmp_path, rows), group="author")
    author = {row[0]: row[2] for row in rows[1:]}
    sides = [{author[text] for text in split["text"]} for split in own.splits.values()]
    assert not sides[0] & sides[1] and not sides[1] & sides[2] and not sides[0] & sides[2]


def test_a_files_own_splits_are_kept(tmp_path: Path, good: list[list[str]]) -> None:
    names = ["train", "dev", "TEST", "train"]
    rows = [["text", "label", "split"], *([*row, names[n % 4]] for n, row in enumerate(good[1:]))]
    own = read_own(csv_of(tmp_path, rows))
    assert {name: len(split) for name, split in own.splits.items()} == {"train": 60, "validation": 30, "test": 30}
    rows.append([rows[1][0], "no", "test"])
    with pytest.raises(DataError, match=r"line 122 stands in another split, too"):
        read_own(csv_of(tmp_path, rows))
    with pytest.raises(DataError, match="line 3 has the split 'later'"):
        read_own(csv_of(tmp_path, [*rows[:2], [*rows[2][:2], "later"], *rows[3:]]))


def test_other_forms_of_the_same_file(tmp_path: Path, good: list[list[str]]) -> None:
    first = everything(read_own(csv_of(tmp_path, good)))
    lines = [json.dumps({"label": label, "text": text}) for text, label in good[1:]]
    (tmp_path / "own.jsonl").write_text("\n".join(lines), encoding="utf-8")
    content = csv_of(tmp_path, good).read_text(encoding="utf-8")
    (tmp_path / "windows.csv").write_bytes(content.replace("\n", "\r\n").encode("utf-8-sig"))
    (tmp_path / "excel.csv").write_bytes(content.encode("utf-16"))
    assert everything(read_own(csv_of(tmp_path, good, "own.tsv", "\t"))) == first
    assert everything(read_own(csv_of(tmp_path, good, "own.csv", ";"), delimiter=";")) == first
    for name in ("own.jsonl", "windows.csv", "excel.csv"):
        assert everything(read_own(tmp_path / name)) == first


def test_texts_keep_what_they_hold(tmp_path: Path, good: list[list[str]]) -> None:
    """A comma, a quotation mark and a line break inside, Chinese, and the words that tables take for missing."""
    odd = ['"one, two"', '"she said ""no"""', '"over\ntwo lines"', "这部电影太棒了", "NA", "null", "nan"]
    own = read_own(csv_of(tmp_path, [*good, *([text, "yes"] for text in odd)]))
    assert {"one, two", 'she said "no"', "over two lines", "这部电影太棒了", "NA", "null", "nan"} < set(everything(own))


def test_numbers_as_classes_stand_in_their_order(tmp_path: Path, good: list[list[str]]) -> None:
    rows = [good[0], *([row[0], (2, 10, 1)[n % 3]] for n, row in enumerate(good[1:]))]
    assert read_own(csv_of(tmp_path, rows)).labels == ("1", "2", "10")
    lines = [json.dumps({"text": row[0], "label": (2, 10, 1)[n % 3]}) for n, row in enumerate(good[1:])]
    (tmp_path / "own.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read_own(tmp_path / "own.jsonl").labels == ("1", "2", "10")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "own.csv is empty"),
        (b"text,label\n", "no text below it"),
        (b"words,kind\na,b\n", "there is no column 'text'.*'words', 'kind'"),
        (b"text;label\na;b\n", "has no comma, but a semicolon.*delimiter=';'"),
        (b"text\tlabel\na\tb\n", "but a tab"),
        (b"text,label,text\na,b,c\n", "two columns 'text'"),
        (b"text,label\na,x\nwell, yes,x\n", "line 3 of own.csv has 3 columns.*a comma in it needs quotation marks"),
        (b'text,label\na,x\n"not closed,y\n', "cannot be read from line 3 on"),
        (b"text,label\na,x\ncaf\xe9,y\n", "line 3 of own.csv is not utf-8: byte 0xe9.*cp1252"),
        (b"text,label\na,x\nb,\nc,\n", "no label at lines 3, 4"),
        (b"text,label\na,x\n,y\n", "no text at line 3"),
        (b"text,label\na,x\nb,x\n", "all texts have the label 'x'"),
        (b"text,label\n" + b"a,x\n" * 9 + b"b,y\n" * 3, "the class 'y' has 3 texts, and at least 5"),
        (b"text,label\na,1\nb,2\nc,3\n", "is this the right column"),
        (b"text,label\na,0.25\nb,1\n", "'0.25' is a number with a fraction"),
        (
            b"text,label\n"
            + b"".join(b"I gave it %d stars and would buy it again,%d\n" % (n, n % 2) for n in range(40)),
            "all texts are nearly",
        ),
        (b"text,label\na,x\n" + b"b" * 140_000 + b",y\n", "begins at line 3 of own.csv has more than 131,072"),
        (b"text,label\na,.5\nb,1\n", "'.5' is a number with a fraction"),
        (b"text,label\n" + b"a,Yes\n" * 9 + b"b,yes\n" * 9, "differ in upper case alone"),
    ],
)
def test_each_fault_of_a_file_gets_a_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_own(tmp_path / "own.csv")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "a", "label": "x"}\nnothing\n', "line 2 of own.jsonl is no JSON"),
        ('{"text": "a", "label": "x"}\n["b", "y"]\n', "line 2 of own.jsonl is no object"),
        ('{"text": "a", "label": "x"}\n{"text": "b"}\n', "no label at line 2"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": NaN}\n', "no label at line 2"),
        ('{"text": "a", "label": "x"}\n{"text": ["b"], "label": "y"}\n', "'text' in line 2 of own.jsonl holds a list"),
        ('{"text": "a", "label": "x"}\n' + "[" * 9000 + "]" * 9000, "line 2 of own.jsonl is no JSON"),
        ('{"text": "a", "label": "x"}\n\n{"text": null, "label": "y"}\n', "no text at line 3"),
    ],
)
def test_each_fault_of_json_lines_gets_a_sentence(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "own.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_own(tmp_path / "own.jsonl")


def test_what_is_no_such_file_gets_a_sentence(tmp_path: Path, good: list[list[str]]) -> None:
    with pytest.raises(DataError, match="it is a folder"):
        read_own(tmp_path)
    with pytest.raises(DataError, match="there is no file"):
        read_own(tmp_path / "none.csv")
    (tmp_path / "own.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"should end in \.csv"):
        read_own(tmp_path / "own.xlsx")
    with pytest.raises(DataError, match="there is no encoding 'utf8x'"):
        read_own(csv_of(tmp_path, good), encoding="utf8x")
    with pytest.raises(DataError, match="too few for three splits"):
        rows = [["text", "label", "author"], *([*row, n % 3] for n, row in enumerate(good[1:]))]
        read_own(csv_of(tmp_path, rows), group="author")


def test_what_is_odd_is_read_as_it_is_meant(tmp_path: Path, good: list[list[str]]) -> None:
    """Half an emoji, a line mark of Unicode inside a text, two ways to write é, a space before a quotation mark."""
    rows = [{"text": text, "label": label} for text, label in good[1:]]
    (tmp_path / "own.jsonl").write_text(
        "\n".join(map(json.dumps, [*rows, {"text": "half \ud83d", "label": "yes"}])), encoding="utf-8"
    )
    assert "half \ufffd" in everything(read_own(tmp_path / "own.jsonl"))
    own = read_own(csv_of(tmp_path, [*good, ["one\u2028text", "yes"], ["another\x85text", ' "yes"']]))
    assert {"one text", "another text"} < set(everything(own)) and own.labels == ("maybe", "no", "yes")
    accents = [good[0], *([text, ("caf\u00e9", "cafe\u0301", "no")[n % 3]] for n, (text, _) in enumerate(good[1:]))]
    assert read_own(csv_of(tmp_path, accents)).labels == ("caf\u00e9", "no")
    assert len(everything(read_own(csv_of(tmp_path, good, between="\t"), delimiter="\\t"))) == 120


def test_a_rare_class_does_not_bend_the_split(tmp_path: Path) -> None:
    rows = [["text", "label"], *([text, "rare" if n < 5 else "a"] for n, text in enumerate(texts(600)))]
    sizes = [len(split) for split in read_own(csv_of(tmp_path, rows)).splits.values()]
    assert abs(sizes[0] - 390) < 40 and abs(sizes[1] - 60) < 30 and abs(sizes[2] - 150) < 30


def test_many_texts_that_differ_in_a_mark_stay_on_one_side(tmp_path: Path) -> None:
    rows = [[f"{text}{mark}", ("no", "yes")[n % 2]] for n, text in enumerate(texts(5_100)) for mark in (".", " !")]
    own = read_own(csv_of(tmp_path, [["text", "label"], *rows]))
    bare = [{text.rstrip(".! ") for text in split["text"]} for split in own.splits.values()]
    assert not bare[0] & bare[1] and not bare[0] & bare[2] and not bare[1] & bare[2]
    assert "near-duplicates are looked for among at most 10,000 texts" in own.remarks[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"text": "text", "label": "text"}, "name two columns"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"encoding": "a\0b"}, "there is no encoding"),
        ({"encoding": "cp9999"}, "there is no encoding"),
    ],
)
def test_what_cannot_be_meant_gets_a_sentence(
    tmp_path: Path, good: list[list[str]], words: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        read_own(csv_of(tmp_path, good), **words)


def test_contradictions_are_told_and_kept(tmp_path: Path, good: list[list[str]]) -> None:
    own = read_own(csv_of(tmp_path, [*good, [str(good[1][0]).upper(), "maybe"]]))
    assert own.remarks[0].startswith("texts that stand there with different labels: 1, such as")


# --- the command ----------------------------------------------------------------------------------------------------


def train(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "course_utils", "train", "lora", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_trains_judges_and_saves(tmp_path: Path, good: list[list[str]]) -> None:
    file, out = csv_of(tmp_path, good), tmp_path / "out"
    done = train("--data", file, "--out", out, "--steps", 2)
    assert done.returncode == 0, done.stderr
    assert "of 30 texts are right, 95% interval" in done.stdout and "always the commonest class" in done.stdout
    record = json.loads((out / "history.json").read_text(encoding="utf-8"))
    assert record["labels"] == ["maybe", "no", "yes"] and record["test"]["n"] == 30
    model, _ = load_classifier(num_labels=3)
    assert load(model, out).config.id2label == {0: "maybe", 1: "no", 2: "yes"}  # type: ignore[union-attr]
    refused = train("--data", csv_of(tmp_path, good[:3]), "--out", tmp_path / "again")
    assert refused.returncode == 1 and "at least 5 are needed" in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "again").exists()
