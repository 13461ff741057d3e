"""Augmentations change what they say, and nothing else."""

from __future__ import annotations

import random

import pytest

from course_utils.data.augment import AUGMENTATIONS, SYNONYMS, drop_negations, drop_words, swap_words, use_synonyms

TEXT = "I do not love this film, it isn't good :("


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_the_same_chance_gives_the_same_copy_and_no_copy_is_empty(name: str) -> None:
    change = AUGMENTATIONS[name]
    assert [change(TEXT, random.Random(3)) for _ in range(2)] == [change(TEXT, random.Random(3))] * 2
    for seed in range(50):
        assert change("not", random.Random(seed)).strip()
        assert change(TEXT, random.Random(seed)).strip()


def test_words_left_out() -> None:
    copies = [drop_words("one two three four", random.Random(seed), 0.25) for seed in range(400)]
    assert sum(len(copy.split()) for copy in copies) / 1600 == pytest.approx(0.75, abs=0.03)
    assert drop_words(TEXT, random.Random(0), 0) == TEXT
    assert drop_words("one two", random.Random(0), 1) == "one"


def test_two_words_change_places() -> None:
    copy = swap_words(TEXT, random.Random(0))
    assert sorted(copy.split()) == sorted(TEXT.split())
    assert sum(a != b for a, b in zip(copy.split(), TEXT.split(), strict=True)) == 2


def test_synonyms_are_of_the_same_group() -> None:
    assert all(word in SYNONYMS[other] for word, others in SYNONYMS.items() for other in others)
    copy = use_synonyms("I Love cats", random.Random(0), 1.0).split()
    assert copy[0] == "I" and copy[1] in SYNONYMS["love"] and copy[2] == "cats"


def test_negations_go_and_the_rest_stays() -> None:
    assert drop_negations(TEXT, random.Random(0)) == "I do love this film, it is good :("
    assert drop_negations("nothing notable, another Nova", random.Random(0)) == "notable, another Nova"
