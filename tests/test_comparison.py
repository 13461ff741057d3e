"""Comparing many methods: the statistics against scipy, the fronts by hand, and a method added in ten lines."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import DatasetDict
from scipy import stats

from course_utils.data.splits import load_sentiment
from course_utils.evaluation import results
from course_utils.evaluation.errors import MetricError
from course_utils.evaluation.many_methods import front, holm, mean_interval, paired_difference
from course_utils.methods.registry import METHODS
from course_utils.plots import comparison as plots
from course_utils.workshop.experiments import comparison as study_comparison, quality, store

PAGE = Path(__file__).parents[1] / "book" / "22_comparison.md"


# --- intervals and pairs ---------------------------------------------------------------------------------------------


def test_the_interval_by_hand_and_by_scipy() -> None:
    assert mean_interval([0.95, 0.96, 0.97]) == pytest.approx((0.96 - 0.02484, 0.96 + 0.02484), abs=1e-5)
    values = np.random.default_rng(0).normal(size=6)
    theirs = stats.t.interval(0.9, 5, loc=values.mean(), scale=stats.sem(values))
    assert mean_interval(values.tolist(), 0.9) == pytest.approx(theirs, abs=1e-12)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    samples = np.random.default_rng(1).normal(size=(1000, 4))
    hits = [low <= 0 <= high for low, high in map(mean_interval, samples.tolist())]
    assert 0.93 < sum(hits) / len(hits) < 0.97


def test_pairs_are_scipys_paired_test() -> None:
    chance = np.random.default_rng(2)
    shared = chance.normal(size=5)
    first, second = ((shared + 0.1 * chance.normal(size=5)).tolist() for _ in range(2))
    found, theirs = paired_difference(first, second), stats.ttest_rel(first, second)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()), abs=1e-12)
    assert found.p == pytest.approx(theirs.pvalue) and found.mean == pytest.approx(np.subtract(first, second).mean())
    apart = stats.ttest_ind(first, second).confidence_interval()
    assert found.high - found.low < apart.high - apart.low  # what the two share is gone


def test_pairs_without_spread() -> None:
    assert paired_difference([0.5, 0.6], [0.5, 0.6]).p == 1
    assert paired_difference([0.5, 0.75], [0.25, 0.5]).p == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval([0.9]), "at least two seeds, got 1"),
        (lambda: mean_interval([0.9, 0.8], 95), "confidence is a share"),
        (lambda: paired_difference([0.9, 0.8], [0.9]), "got 2 and 1 values"),
        (lambda: holm({"a": 1.2}), "that of 'a' is 1.2"),
        (lambda: holm({"a": math.nan}), "that of 'a' is nan"),
        (lambda: front({"a": (0.9,)}), "at least one"),
        (lambda: front({"a": (0.9, 1), "b": (0.9, 1, 2)}), "2, 3 numbers"),
        (lambda: front({"a": (0.9, math.nan)}), "'a' has a value or a price"),
    ],
)
def test_errors_say_what_to_do(call: Any, words: str) -> None:
    with pytest.raises(MetricError, match=re.escape(words)):
        call()


# --- many tests ------------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    adjusted = holm({"d": 0.03, "a": 0.001, "e": 0.6, "c": 0.015, "b": 0.012})
    assert list(adjusted) == ["d", "a", "e", "c", "b"]
    assert adjusted == pytest.approx({"a": 0.005, "b": 0.048, "c": 0.048, "d": 0.06, "e": 0.6})
    assert holm({}) == {} and holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_holm_keeps_its_promise_and_finds_at_least_what_bonferroni_finds() -> None:
    """Two real differences among eight tests: a false finding in at most 5% of all studies."""
    chance = np.random.default_rng(3)
    false, bonferroni, ours = 0, 0, 0
    for _ in range(400):
        p = stats.ttest_1samp(chance.normal(size=(8, 6)) + np.array([[2.5]] * 2 + [[0]] * 6), 0, axis=1).pvalue
        passed = {key for key, value in holm(dict(enumerate(p))).items() if value <= 0.05}  # type: ignore[arg-type]
        false += bool(passed - {0, 1})
        bonferroni += int((p <= 0.05 / 8).sum())
        ours += len(passed)
    assert false / 400 < 0.08 and ours > bonferroni


# --- fronts ----------------------------------------------------------------------------------------------------------


def test_the_front_by_hand() -> None:
    rows = {"a": (0.96, 100, 50), "b": (0.96, 200, 40), "c": (0.95, 150, 60), "d": (0.97, 900, 900), "e": (0.9, 90, 30)}
    assert front(rows) == ["e", "a", "b", "d"]  # c is beaten by a
    assert front({name: row[:2] for name, row in rows.items()}) == ["e", "a", "d"]
    assert front({"x": (0.9, 1), "twin": (0.9, 1)}) == ["x", "twin"] and front({}) == []


# --- the result file -------------------------------------------------------------------------------------------------


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Path → number or text, of what JSON holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    return {name: leaf for key, item in items for name, leaf in _leaves(item, f"{path}.{key}").items()}


def test_the_result_file_follows_from_the_study() -> None:
    """After `make study` run `python -m course_utils study-comparison`: it measures no cost again."""
    stored = results.read("comparison")
    fresh = study_comparison.compared(results.read("quality"), stored["costs"])
    kept, made = _leaves({key: stored[key] for key in fresh}), _leaves(fresh)
    numbers = [path for path, leaf in made.items() if not isinstance(leaf, str)]
    assert list(kept) == list(made) and all(kept[path] == made[path] for path in set(made) - set(numbers))
    assert [kept[path] for path in numbers] == pytest.approx([made[path] for path in numbers], rel=1e-9, abs=1e-12)
    assert list(stored["methods"]) == study_comparison.methods()
    assert stored["seeds"] == len(results.read("quality")["seeds"])


def test_what_the_chapter_says_holds() -> None:
    stored = results.read("comparison")
    costs, rows = stored["costs"], stored["methods"]
    assert costs["full"]["memory_mb"] > 1.3 * costs["lora"]["memory_mb"]
    assert costs["full"]["checkpoint_kb"] > 100 * costs["lora"]["checkpoint_kb"]
    assert costs["prompt"]["step_ms"] > 1.3 * costs["lora"]["step_ms"]
    low = {row["method"] for row in stored["differences"].values() if row["p_holm"] <= 0.05 and row["mean"] < 0}
    assert {"head_only", "prompt", "bitfit"} <= low and not {"lora", "ia3", "pfeiffer"} & low
    assert (
        "full" not in stored["fronts"]["memory_mb"]
        or rows["full"]["accuracy"]["mean"] > rows["lora"]["accuracy"]["mean"]
    )
    passed, fewer = stored["tests"]["all_seeds"], stored["tests"]["first_seeds"]
    assert fewer["holm"] < passed["holm"] < passed["uncorrected"] and passed["bonferroni"] <= passed["holm"]
    assert abs(stored["tests"]["seed_correlation"]) < 0.2  # the page says that the seeds share nothing
    unreliable = stored["differences"]["p_tuning"]
    assert unreliable["mean"] < -0.1 and unreliable["p"] < 0.05 < unreliable["p_holm"]


@pytest.mark.parametrize("draw", ["parameters_and_memory", "time_and_storage", "two_kinds_of_luck", "differences"])
def test_a_figure_names_every_method_in_words(draw: str) -> None:
    picture = getattr(plots, draw)()
    titles = {row["title"] for row in results.read("comparison")["methods"].values()}
    missing = {title for title in titles if title not in picture.alt}
    assert missing <= ({"full fine-tuning"} if draw == "differences" else set())


# --- ten lines -------------------------------------------------------------------------------------------------------


def ten_lines() -> str:
    """The block of the page that adds a method, without its imports."""
    text = PAGE.read_text(encoding="utf-8")
    section = text[text.index("## Add a method in ten lines") :]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]


def test_the_ten_lines_are_ten() -> None:
    lines = [line for line in ten_lines().splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 10


def test_a_method_added_as_the_page_says_is_in_the_plots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the page says, with real trainings; only the texts are few, so that it takes seconds."""
    monkeypatch.setitem(METHODS, "layer_norm", METHODS["lora"])  # the block replaces it, and the end takes it out
    exec(compile(ten_lines(), str(PAGE), "exec"), {"__name__": "__main__"})  # as in a notebook
    assert METHODS["layer_norm"].title == "LayerNorm tuning"
    tweets = load_sentiment("tweets")
    few = DatasetDict({split: tweets[split].select(range(8)) for split in tweets})
    real = {name: results.read(name) for name in ("quality", "comparison")}
    monkeypatch.setattr(quality, "_tweets", lambda: few)
    quality._facts.cache_clear()
    monkeypatch.setattr(results, "FOLDER", tmp_path / "book" / "results")
    for name, content in real.items():
        store.write(name, "a copy", content)
    try:
        assert quality.main(["layer_norm"]) == 0
        assert study_comparison.main(["layer_norm", "--steps", "1", "--processes", "1"]) == 0
    finally:
        quality._facts.cache_clear()
    row = results.read("comparison")["methods"]["layer_norm"]
    assert len(row["seeds"]) == len(real["quality"]["seeds"]) and row["trainable"] == 770 + 2 * 384 * 13
    assert results.read("comparison")["costs"]["lora"] == real["comparison"]["costs"]["lora"]
    for draw in (plots.parameters_and_memory, plots.time_and_storage, plots.two_kinds_of_luck, plots.differences):
        assert "LayerNorm tuning" in draw().alt


def test_the_command_explains_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["lroa"], "unknown method lroa"), (["--steps", "0"], "at least 1")):
        with pytest.raises(SystemExit):
            study_comparison.main(arguments)
        assert words in capsys.readouterr().err
