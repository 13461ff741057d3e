"""What a model must beat: a list of words that a person wrote in ten minutes, and word counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Written without looking at the tweets, so that no test text can have shaped it.
POSITIVE = _words("""
    good great nice love loved loves loving lovely like liked likes happy happier best better awesome amazing beautiful
    cool fun funny excellent perfect thanks thank thankful wonderful fantastic brilliant glad enjoy enjoyed enjoying
    excited exciting win won winner yay congrats congratulations proud sweet cute hope smile smiling laugh haha lol
    pretty super sunny delicious free safe friend friends welcome fine easy interesting pleased
""")
NEGATIVE = _words("""
    bad worse worst sad hate hated hates hating awful terrible horrible angry annoying annoyed sick ill hurt hurts pain
    fail failed fails failure sorry miss missing missed lost lose losing boring bored tired stupid dumb ugly wrong
    broken broke crap damn hell sucks suck sucked ugh cry crying cried alone lonely scared fear afraid worried worry
    poor problem problems trouble dead die died death kill killed headache late slow rain
""")
NEGATIONS = _words("not no never without cannot nor nothing nobody hardly")
_WORD = re.compile(r"[a-z]+(?:n't|'\w+)?|[:;=]-?[)dp(/]|<3")
_FACES = {":)": 1, ":-)": 1, ":d": 1, ";)": 1, ";-)": 1, "=)": 1, ":p": 1, "<3": 1, ":(": -1, ":-(": -1, ":/": -1}


def lexicon_score(text: str) -> int:
    """Positive minus negative words and faces; a negation turns the next three words round.

    >>> lexicon_score("I love this"), lexicon_score("I do not really love this :(")
    (1, -2)
    """
    total, turned = 0, 0  # words for which the last negation still counts
    for word in _WORD.findall(text.lower().replace("’", "'")):
        if word in NEGATIONS or word.endswith("n't"):
            turned = 3
            continue
        value = _FACES.get(word, (word in POSITIVE) - (word in NEGATIVE))
        total += -value if turned > 0 and word not in _FACES else value
        turned -= 1
    return total


def lexicon_logits(texts: Sequence[str], majority: int = 1) -> np.ndarray:
    """Logits (n, 2) of the list of words: the score, and a touch of the majority class where the score is 0.

    Args:
        texts: cleaned texts.
        majority: the larger class of the training split.
    """
    scores = np.array([lexicon_score(text) for text in texts], dtype=float)
    scores[scores == 0] = 0.1 if majority else -0.1
    return np.stack([np.zeros_like(scores), scores], axis=1)


def word_counts(texts: Sequence[str], labels: Sequence[int]) -> Pipeline:
    """Logistic regression on TF-IDF weights of words and pairs of words, fitted; the settings are the study's."""
    linear = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    return linear.fit(list(texts), list(labels))


def word_count_logits(linear: Pipeline, texts: Sequence[str]) -> np.ndarray:
    """Logits (n, 2) of fitted word counts."""
    margin = linear.decision_function(list(texts))
    return np.stack([np.zeros_like(margin), margin], axis=1)


# --- a small, fast classifier ----------------------------------------------------------------------------------------


def count_words(texts: Sequence[str]) -> csr_matrix:
    """How often each word and each pair of words stands in each text; the classifier below weighs them."""
    counts: csr_matrix = CountVectorizer(ngram_range=(1, 2)).fit_transform(texts)
    return counts


def positive_scores(
    counts: csr_matrix,
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    strength: float = 10,
    **settings: Any,
) -> np.ndarray:
    """Learn from the rows `train`; the score of each row of `test`, above 0 for positive.

    Words that no training text holds are left out before anything is weighed, so nothing is learnt from the test.

    Args:
        counts: of `count_words`.
        labels: of all rows.
        train, test: row numbers.
        strength: the C of the logistic regression; more trusts the training texts more.
        settings: `class_weight` for the regression, `sample_weight` (one a training row) for its fit.
    """
    known = np.flatnonzero(counts[train].getnnz(axis=0))
    tfidf = TfidfTransformer(sublinear_tf=True)
    weighed = tfidf.fit_transform(counts[train][:, known])
    model = LogisticRegression(C=strength, max_iter=1000, class_weight=settings.get("class_weight"))
    model.fit(weighed, labels[train], sample_weight=settings.get("sample_weight"))
    scores: np.ndarray = model.decision_function(tfidf.transform(counts[test][:, known]))
    return scores


def right_answers(
    counts: csr_matrix, labels: np.ndarray, train: np.ndarray, test: np.ndarray, **settings: Any
) -> np.ndarray:
    """Whether each row of `test` is answered rightly."""
    right: np.ndarray = (positive_scores(counts, labels, train, test, **settings) > 0) == labels[test]
    return right
