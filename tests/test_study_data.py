"""The chapter on data: near-duplicates, the fast classifier, the splits and the stored results."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from course_utils.data import splits
from course_utils.data.errors import DataError
from course_utils.data.splits import near_duplicate_groups
from course_utils.evaluation import baselines, results
from course_utils.workshop.experiments import data as study_data


def test_near_duplicates_are_one_group() -> None:
    texts = ["That was fun!", "so sad :(", "That was FUN!!", "THAT was fun!!!", "Nothing like it", "so sad :("]
    groups = near_duplicate_groups(texts)
    assert groups[0] == groups[2] == groups[3] and groups[1] == groups[5]
    assert len(set(groups)) == 3
    assert len(set(near_duplicate_groups(["a b", "c d"]))) == 2


def test_groups_are_closed() -> None:
    texts = ["one two three four five six", "one two three four five", "one two three four"]
    groups = near_duplicate_groups(texts, 0.75)
    assert len(set(groups)) == 1
    assert len(set(near_duplicate_groups([texts[0], texts[2]], 0.75))) == 2


@pytest.mark.parametrize("similarity", [0, -1, 1.1])
def test_bad_similarity(similarity: float) -> None:
    with pytest.raises(DataError, match="similarity"):
        near_duplicate_groups(["a text"], similarity)


def test_the_fast_classifier_is_the_plain_one() -> None:
    frame, labels = study_data._labelled("tweets")
    texts, labels = list(frame["text"][:600]), labels[:600]
    train, test = np.arange(400), np.arange(400, 600)
    plain = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    ).fit(texts[:400], labels[:400])
    scores = baselines.positive_scores(baselines.count_words(texts), labels, train, test)
    assert scores == pytest.approx(plain.decision_function(texts[400:]), abs=1e-4)


@pytest.mark.parametrize("stratified", [True, False])
def test_three_parts_hold_every_text_once(stratified: bool) -> None:
    labels = np.array([0] * 100 + [1] * 900)
    parts = splits.three_way_split(labels, 3, stratified)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert [len(part) for part in parts] == [650, 100, 250]
    if stratified:
        assert [int((labels[part] == 0).sum()) for part in parts] == [65, 10, 25]


def test_the_stored_results_say_what_the_chapter_says() -> None:
    data = results.read("data")
    assert data["command"] == study_data.COMMAND
    assert set(study_data.EXPERIMENTS) <= set(data)
    news, tweets = data["news_duplicates"], data["near_duplicates"]
    assert news["on_leaked"] > 0.99 and news["inflated_seeds"] == news["seeds"]
    assert tweets["on_leaked"] > tweets["on_rest"]
    for row in data["planted_duplicates"]:
        assert row["measured"] == pytest.approx(row["share"] + (1 - row["share"]) * row["honest"], abs=0.01)
    by_way = {row["way"]: row for row in data["imbalance"]["table"]}
    assert by_way["as it is"]["accuracy"] > 0.9 and by_way["as it is"]["recall"] < 0.2
    assert by_way["threshold moved"]["recall"] > 2 * by_way["as it is"]["recall"]
    assert max(row["roc_auc"] for row in by_way.values()) < by_way["as it is"]["roc_auc"] + 0.005
    gains = {row["augmentation"]: row for row in data["augmentation"]["rows"] if row["labels"] == 128}
    assert gains["two words swapped"]["gain_low"] > 0
    assert gains["negations deleted"]["negated_gain_high"] < 0
    cleaning = data["cleaning"]
    assert abs(cleaning[0]["accuracy"] - cleaning[1]["accuracy"]) < cleaning[0]["spread"]
    assert cleaning[1]["negated"] < cleaning[0]["negated"] - 0.03
    assert {row["missing"] for row in data["splits"] if row["stratified"]} == {0}
    assert data["pairs"]["alpha"] == pytest.approx(data["pairs"]["kappa"], abs=0.005)
