"""Texts of your own: a CSV or JSON-lines file, checked, described and split, before anything is trained on it."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from course_utils.data.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

#: Near-duplicates are found by comparing all pairs; above this many texts only equal ones are kept together.
PAIRS = 10_000
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_KINDS = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".ndjson": None}
_FEWEST = 5  # of a class, so that each split can hold one
_FRACTION = re.compile(r"[+-]?(?:\d*[.,]\d*[1-9]\d*(?:e[+-]?\d+)?|\d+e-\d+)", re.IGNORECASE)
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class OwnTexts:
    """A file of texts that can be learned from.

    Args:
        splits: `train`, `validation` and `test`, with the columns `text` and `label`.
        labels: the classes by name; their numbers are their places here.
        remarks: what was found that is no fault, as sentences.
    """

    splits: DatasetDict
    labels: tuple[str, ...]
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        counts = {name: Counter(self.splits[name]["label"]) for name in _SPLITS}
        wide = max(len(name) for name in (*self.labels, "all"))
        lines = [f"{'':{wide}}  " + "".join(f"{name:>12}" for name in _SPLITS)]
        for number, label in enumerate(self.labels):
            lines.append(f"{label:{wide}}  " + "".join(f"{counts[name][number]:12,}" for name in _SPLITS))
        lines.append(f"{'all':{wide}}  " + "".join(f"{counts[name].total():12,}" for name in _SPLITS))
        return "\n".join([*lines, *self.remarks])


def read_own(
    file: str | Path,
    *,
    text: str = "text",
    label: str = "label",
    group: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    seed: int = 0,
) -> OwnTexts:
    """Read texts with one label each, and split them so that what belongs together stays on one side.

    About 65% of the texts are for training, 10% for validation, 25% for the test, with nearly the same share of each
    class. What belongs together are the texts of one `group`, such as an author or a product; without groups, texts
    that are nearly the same (see `near_duplicate_groups`). A file with a column `split` (train, validation, test)
    keeps its own splits.

    Args:
        file: CSV, TSV, or JSON lines with one object a line.
        text, label: names of the columns. Labels are words or whole numbers; each different one is a class.
        group: the column that says what belongs together.
        delimiter: between the columns of a CSV; by default a comma, in a TSV a tab.
        encoding: of the file; a mark at its beginning is understood.
        seed: of the split.

    Raises:
        DataError: the file cannot be read, or cannot be learned from; the message names rows by their line.
    """
    frame = _read(Path(file), text, label, delimiter, encoding)
    wanted = [text, label, *([group] if group else [])]
    if missing := [name for name in wanted if name not in frame.columns]:
        raise DataError(
            f"there is no column {missing[0]!r} in {Path(file).name}; there are {', '.join(map(repr, frame.columns))}. "
            "Say which ones hold the texts and the labels: text=..., label=..."
        )
    frame = frame.rename(
        columns={name: "split" for name in frame.columns if name.lower() == "split" and name not in wanted}
    )
    own = "split" in frame.columns and "split" not in wanted
    if text == label:
        raise DataError(f"the texts and the labels are both in the column {text!r}: name two columns")
    if seed < 0:
        raise DataError(f"seed must be at least 0, got {seed}")
    texts, names = _texts(frame, text), _labels(frame, label)
    classes = tuple(sorted(set(names), key=_by_number))
    _check_classes(classes, Counter(names))
    numbers = np.array([classes.index(name) for name in names])
    remarks = list(_contradictions(texts, names))
    if own:
        if group:
            raise DataError("the column 'split' says how to split, and group=... too: leave one of them out")
        places = _own_splits(frame, texts)
        remarks.append("split as the column 'split' says")
    else:
        groups, said = _groups(frame, group, texts)
        places = _split(numbers, groups, seed)
        remarks.append(said)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(classes))})
    splits = {
        name: Dataset.from_dict(
            {"text": [texts[row] for row in rows], "label": numbers[rows].tolist()}, features=features
        )
        for name, rows in places.items()
    }
    for name, rows in places.items():
        if gone := [one for place, one in enumerate(classes) if place not in numbers[rows]]:
            raise DataError(
                f"the class {gone[0]!r} has no text in the split {name!r}, so it can be neither learned nor judged: "
                "give it more texts, or other groups"
            )
    return OwnTexts(DatasetDict(splits), classes, tuple(remarks))


# --- reading --------------------------------------------------------------------------------------------------------


def _read(file: Path, text: str, label: str, delimiter: str | None, encoding: str) -> pd.DataFrame:
    """All cells as words, empty ones as ""; the index is the line of the file."""
    if not file.is_file():
        raise DataError(f"there is no file {file}" + (": it is a folder" if file.is_dir() else ""))
    if file.suffix.lower() not in _KINDS:
        raise DataError(f"{file.name} should end in {', '.join(_KINDS)}: save it as one of these")
    content = _decoded(file, encoding)
    if not content.strip():
        raise DataError(f"{file.name} is empty")
    separator = _KINDS[file.suffix.lower()]
    if separator is None:
        return _json_lines(file, content)
    first = content.splitlines()[0]
    separator = {"\\t": "\t"}.get(delimiter or "", delimiter) or separator  # a shell hands over two characters
    if separator not in first and not {text, label} <= {first.strip().strip('"')}:
        others = [name for name in _DELIMITERS if name in first and name != separator]
        if others:
            none = _DELIMITERS.get(separator, repr(separator)).removeprefix("a ")
            raise DataError(
                f"the first line of {file.name} has no {none}, but {_DELIMITERS[others[0]]} between its names: "
                f"{first[:60]!r}. Say delimiter={others[0]!r}"
            )
    return _table(file, content, separator)


def _decoded(file: Path, encoding: str) -> str:
    raw = file.read_bytes()
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    try:
        return raw.decode(encoding).removeprefix("\ufeff")
    except (LookupError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise _not_in(file, raw, encoding, error) from error
        raise DataError(f"there is no encoding {encoding!r}; common ones are utf-8, cp1252, gb18030") from error


def _not_in(file: Path, raw: bytes, encoding: str, error: UnicodeDecodeError) -> DataError:
    line = raw[: error.start].count(b"\n") + 1
    return DataError(
        f"line {line} of {file.name} is not {encoding}: byte {raw[error.start]:#04x}. A spreadsheet on Windows "
        "often writes cp1252, in China gb18030: try encoding='cp1252', look at the texts, or save the file as UTF-8"
    )


def _table(file: Path, content: str, separator: str) -> pd.DataFrame:
    import pandas as pd

    if len(separator) != 1:
        raise DataError(f"delimiter must be one character, got {separator!r}")
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    rows, lines, begun = [], [], 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(begun)
            begun = reader.line_num + 1
    except csv.Error as error:
        if "field larger" in str(error):
            raise DataError(
                f"a text that begins at line {begun} of {file.name} has more than {csv.field_size_limit():,} "
                "characters: shorten it, or look for a quotation mark that is not closed"
            ) from error
        raise DataError(
            f"{file.name} cannot be read from line {begun} on ({error}): is a quotation mark not closed, or "
            "not doubled inside a text?"
        ) from error
    names = [name.strip() for name in rows[0]]
    if double := [name for name, times in Counter(names).items() if times > 1]:
        raise DataError(f"{file.name} has two columns {double[0]!r}: rename one")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            raise DataError(
                f"line {line} of {file.name} has {len(row)} columns, and the first line {len(names)}: a text with "
                f"{_DELIMITERS.get(separator, repr(separator))} in it needs quotation marks around it"
            )
    return pd.DataFrame(rows[1:], columns=names, index=lines[1:])


def _json_lines(file: Path, content: str) -> pd.DataFrame:
    import pandas as pd

    rows, lines = [], []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} of {file.name} is no JSON ({error}): write one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f'line {number} of {file.name} is no object: write {{"text": ..., "label": ...}}')
        rows.append({key: _as_word(value, f"{key!r} in line {number} of {file.name}") for key, value in row.items()})
        lines.append(number)
    return pd.DataFrame(rows, index=lines).fillna("")


def _as_word(value: Any, where: str) -> str:
    """A cell of JSON as it would stand in a CSV; nothing and "not a number" are an empty one."""
    if isinstance(value, (dict, list)):
        raise DataError(
            f"{where} holds {'a list' if isinstance(value, list) else 'an object'}: a text or a label is one word"
        )
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value) and value == int(value)):
        return str(int(value))
    return _whole(str(value))


# --- checking -------------------------------------------------------------------------------------------------------


def _at(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:5]))
    return f"{'line' if len(lines) == 1 else 'lines'} {shown}{f' and {len(lines) - 5} more' if len(lines) > 5 else ''}"


def _texts(frame: pd.DataFrame, column: str) -> list[str]:
    texts = [" ".join(_whole(str(text)).split()) for text in frame[column]]
    if empty := [line for line, text in zip(frame.index, texts, strict=True) if not text]:
        raise DataError(f"there is no text at {_at(empty)}: remove these rows, or fill them in")
    if not texts:
        raise DataError("there is a first line with names, and no text below it")
    return texts


def _whole(text: str) -> str:
    """Halves of a character, which a cut emoji leaves, as the sign for what cannot be read."""
    return "".join("\ufffd" if 0xD800 <= ord(sign) < 0xE000 else sign for sign in text)


def _labels(frame: pd.DataFrame, column: str) -> list[str]:
    labels = [unicodedata.normalize("NFC", _whole(str(label))).strip().strip("\u200b\ufeff") for label in frame[column]]
    if missing := [line for line, label in zip(frame.index, labels, strict=True) if not label]:
        raise DataError(
            f"there is no label at {_at(missing)}: label these texts, or take them out. Texts without labels can be "
            "neither learned from nor used for a test"
        )
    if fractions := [label for label in labels if _FRACTION.fullmatch(label)]:
        raise DataError(
            f"the label {fractions[0]!r} is a number with a fraction, and a classifier needs classes: cut the numbers "
            "into a few classes first, such as negative below 0 and positive above"
        )
    return labels


def _by_number(label: str) -> tuple[int, str]:
    return (int(label), "") if re.fullmatch(r"[+-]?\d{1,9}", label) else (10**9, label)


def _check_classes(classes: Sequence[str], counts: Counter[str]) -> None:
    if len(classes) < 2:
        raise DataError(f"all texts have the label {classes[0]!r}: a classifier needs at least two classes")
    same: dict[str, str] = {}
    for name in classes:
        if (other := same.setdefault(name.casefold(), name)) != name:
            raise DataError(f"{other!r} and {name!r} differ in upper case alone: write one class in one way")
    rare = [name for name in classes if counts[name] < _FEWEST]
    if rare:
        total = counts.total()
        hint = (
            f"; {len(classes)} classes for {total} texts: is this the right column?" if len(classes) > total / 5 else ""
        )
        raise DataError(
            f"the class {rare[0]!r} has {counts[rare[0]]} texts, and at least {_FEWEST} are needed for three splits: "
            f"collect more, join classes, or leave it out{hint}"
        )


def _contradictions(texts: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The same text with two labels is no fault of the file; but nobody can be right about it."""
    by_text: dict[str, set[str]] = {}
    for text, label in zip(texts, labels, strict=True):
        by_text.setdefault(text.casefold(), set()).add(label)
    torn = [text for text, found in by_text.items() if len(found) > 1]
    return [f"texts that stand there with different labels: {len(torn)}, such as {torn[0][:50]!r}"] if torn else []


# --- splitting ------------------------------------------------------------------------------------------------------


def _groups(frame: pd.DataFrame, column: str | None, texts: list[str]) -> tuple[np.ndarray, str]:
    import pandas as pd

    if column is not None:
        names = [str(name).strip() for name in frame[column]]
        if missing := [line for line, name in zip(frame.index, names, strict=True) if not name]:
            raise DataError(f"the column {column!r} is empty at {_at(missing)}: each text belongs to a group")
        groups, found = pd.factorize(np.array(names, dtype=object))
        if len(found) < 2 * len(_SPLITS):
            raise DataError(f"{len(found)} groups in {column!r} are too few for three splits; 6 are the least")
        return groups, f"split by {column!r}: {len(found):,} groups, each on one side"
    if len(texts) <= PAIRS:
        from course_utils.data.splits import near_duplicate_groups

        groups = near_duplicate_groups(texts)
        what = "nearly the same"
    else:
        groups = pd.factorize(np.array([_bare(text) for text in texts], dtype=object))[0]
        what = f"the same (near-duplicates are looked for among at most {PAIRS:,} texts)"
    if len(set(groups.tolist())) < 2 * len(_SPLITS):
        raise DataError(
            "all texts are nearly the same, so each of them would stand in the test as it was learned: give texts that "
            "differ, or a column 'split' of your own"
        )
    double = len(texts) - len(set(groups.tolist()))
    return groups, f"texts that are {what} as another, and stand on its side: {double:,}"


def _bare(text: str) -> str:
    """Letters and digits alone, so that a full stop makes no new text."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip() or text


def _split(labels: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Rows of train, validation and test: a quarter for the test, then an eighth of the rest."""
    rest, test = _hold_out(np.arange(len(labels)), labels, groups, 4, seed)
    train, validation = _hold_out(rest, labels, groups, 8, seed)
    return {"train": train, "validation": validation, "test": test}


def _hold_out(
    rows: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import StratifiedGroupKFold

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer texts than folds: looked at below
        cut = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
        parts = list(cut.split(rows, labels[rows], groups[rows]))
    wanted = len(rows) / folds
    # Of the folds that hold each class, and leave each, the one whose size is nearest to what was asked for.
    everything = set(labels.tolist())
    good = [(kept, held) for kept, held in parts if set(labels[rows[held]].tolist()) == everything]
    good = [(kept, held) for kept, held in good if set(labels[rows[kept]].tolist()) == everything] or parts[:1]
    kept, held = min(good, key=lambda part: abs(len(part[1]) - wanted))
    return rows[kept], rows[held]


def _own_splits(frame: pd.DataFrame, texts: Sequence[str]) -> dict[str, np.ndarray]:
    names = {"dev": "validation", "val": "validation", "valid": "validation"}
    said = [names.get(name, name) for name in (str(cell).strip().lower() for cell in frame["split"])]
    if wrong := [(line, name) for line, name in zip(frame.index, said, strict=True) if name not in _SPLITS]:
        line, name = wrong[0]
        raise DataError(f"line {line} has the split {name!r}; there are {', '.join(_SPLITS)}")
    if missing := [name for name in _SPLITS if name not in said]:
        raise DataError(f"no text has the split {missing[0]!r}: name all three, or leave the column out")
    home: dict[str, str] = {}
    both = [
        line
        for line, text, name in zip(frame.index, texts, said, strict=True)
        if home.setdefault(_bare(text), name) != name
    ]
    if both:
        raise DataError(
            f"the text at {_at(both)} stands in another split, too, so the test would ask what was learned by heart: "
            "keep it on one side, or leave the column 'split' out"
        )
    return {name: np.array([row for row, split in enumerate(said) if split == name]) for name in _SPLITS}
