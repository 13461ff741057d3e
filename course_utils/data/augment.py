"""More training texts from few: small changes that should leave the label as it is, and one that does not.

Each function takes a text and a source of chance, and returns a changed copy; the label is copied by whoever calls it.
Whether the label still holds is for you to check: `drop_negations` is here to show what happens when it does not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

#: Words that mean nearly the same, one group a line.
_SYNONYMS = """
love adore enjoy
hate loathe detest despise
good great fine nice
bad awful terrible horrible
happy glad cheerful delighted
sad unhappy miserable gloomy
funny hilarious amusing
beautiful lovely gorgeous
awesome amazing fantastic wonderful brilliant
boring dull tedious
angry mad furious
sick ill unwell
stupid dumb foolish
excited thrilled eager
best finest greatest
tired exhausted weary
annoying irritating
hope wish
win triumph
lose fail
scary frightening
ugly hideous
cute adorable sweet
problem trouble issue
really truly very
film movie
song track tune
work job
people folks
friend buddy pal
start begin
big large huge
small little tiny
think believe
want need
get obtain receive
"""
SYNONYMS = {
    word: [other for other in line.split() if other != word]
    for line in _SYNONYMS.strip().splitlines()
    for word in line.split()
}
NEGATION = re.compile(r"\b(?:not|no|never|nothing|nobody|cannot|without)\b|n['’]t\b", re.IGNORECASE)


def drop_words(text: str, chance: random.Random, share: float = 0.15) -> str:
    """Leave each word out with the probability `share`; at least one stays."""
    words = text.split()
    return " ".join([word for word in words if chance.random() >= share] or words[:1])


def swap_words(text: str, chance: random.Random) -> str:
    """Let two words change places."""
    words = text.split()
    if len(words) > 1:
        one, other = chance.sample(range(len(words)), 2)
        words[one], words[other] = words[other], words[one]
    return " ".join(words)


def use_synonyms(text: str, chance: random.Random, share: float = 0.5) -> str:
    """Replace each word that has synonyms in our short list by one of them, with the probability `share`."""

    def replaced(match: re.Match[str]) -> str:
        others = SYNONYMS.get(match[0].lower())
        return chance.choice(others) if others and chance.random() < share else match[0]

    return re.sub(r"[A-Za-z]+", replaced, text)


def drop_negations(text: str, chance: random.Random) -> str:
    """Delete not, no, never and the like. **This breaks labels**: “not good” becomes “good”."""
    return " ".join(NEGATION.sub("", text).split()) or text


#: What the study compares.
AUGMENTATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "words left out": drop_words,
    "two words swapped": swap_words,
    "synonyms from a list": use_synonyms,
    "negations deleted": drop_negations,
}
