"""The real rated texts: reading, cleaning, splitting, encoding and batching."""

from __future__ import annotations

import html
import re
import warnings

import pandas as pd
import pytest
from datasets import DatasetDict
from transformers import PreTrainedTokenizerBase

from course_utils.data.batching import LengthBucketedSampler, encode, make_loader
from course_utils.data.cleaning import clean, clean_text
from course_utils.data.errors import DataError
from course_utils.data.ratings import DOMAINS, load_ratings
from course_utils.data.splits import load_sentiment


@pytest.fixture(scope="module")
def tweets() -> pd.DataFrame:
    return load_ratings("tweets")


@pytest.fixture(scope="module")
def splits() -> DatasetDict:
    return load_sentiment("tweets")


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domain", "published", "kept"),
    [("tweets", 4200, 3372), ("movies", 10605, 10070), ("products", 3708, 2977), ("news", 5190, 2931)],
)
def test_counts_of_each_domain(domain: str, published: int, kept: int) -> None:
    frame = load_ratings(domain)
    cleaned, counts = clean(frame)
    assert len(frame) == counts.published == published
    assert len(cleaned) == counts.kept == kept
    assert frame["id"].is_unique
    assert frame["ratings"].map(len).min() >= 15
    assert not cleaned["text"].str.contains(r"&(?:amp|lt|gt|quot);").any()


def test_every_domain_is_counted_above() -> None:
    assert set(DOMAINS) == {"tweets", "movies", "products", "news"}


def test_text_is_decoded_rightly(tweets: pd.DataFrame) -> None:
    assert tweets["text"].str.contains("£1000 homewares", regex=False).sum() == 1
    assert tweets["text"].str.contains("español", regex=False).sum() == 1
    assert not tweets["text"].str.contains("[\ufffd\ufeff\r]").any()


def test_ratings_mean_and_soft_label_agree(tweets: pd.DataFrame) -> None:
    for votes, rating, soft in zip(tweets["ratings"], tweets["rating"], tweets["soft_label"], strict=True):
        assert all(-4 <= vote <= 4 for vote in votes)
        assert rating == pytest.approx(sum(votes) / len(votes))
        positive, neutral = sum(vote > 0 for vote in votes), sum(vote == 0 for vote in votes)
        assert soft == pytest.approx((positive + neutral / 2) / len(votes))


def test_unknown_domain() -> None:
    with pytest.raises(DataError, match="no domain 'tweet'; choose one of tweets, movies, products, news"):
        load_sentiment("tweet")


# --- cleaning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("published", "cleaned"),
    [
        ("I &lt;3 you &amp; me", "I <3 you & me"),
        ("Skadden, Meagher &amp;amp; Flom", "Skadden, Meagher & Flom"),
        ("see http://url_removed now", "see http now"),
        ("HTTPS://a.b/c?d=e#f and www.site.org/x", "http and http"),
        ("@anonymous: hi @Some_One2", "@user: hi @user"),
        ("RT@anonymous hm", "RT@anonymous hm"),
        ("write to me@work.org please", "write to me@work.org please"),
        ("  two\t lines\n here ", "two lines here"),
        ("I would awww. at that", "I would awww. at that"),
        ("@小明今天真开心", "@小明今天真开心"),
        ("我爱@user1你们", "我爱@user你们"),
        ("看http://t.cn/RuPx4太好笑了", "看http太好笑了"),
        ("看HTTPS://a.b/c。真的", "看http。真的"),
        ("네이버www.naver.com에서", "네이버http에서"),
        ("", ""),
    ],
)
def test_clean_text(published: str, cleaned: str) -> None:
    assert clean_text(published) == cleaned


def _before(text: str) -> str:
    """The cleaning with which the course's numbers were measured: names and addresses in any script."""
    text = html.unescape(html.unescape(text))
    text = re.sub(r"(?:https?://|www\.)\S+", "http", text, flags=re.IGNORECASE)
    return " ".join(re.sub(r"(?<!\w)@\w+", "@user", text).split())


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_course_s_own_texts_did_not_change_with_the_patterns(domain: str) -> None:
    texts = load_ratings(domain)["text"]
    assert [clean_text(text) for text in texts] == [_before(text) for text in texts]


def test_clean_text_twice_changes_nothing_more(tweets: pd.DataFrame) -> None:
    once = tweets["text"].map(clean_text)
    assert once.equals(once.map(clean_text))


@pytest.mark.parametrize("threshold", [0, -0.5, 4.1, float("nan")])
def test_threshold_out_of_range(tweets: pd.DataFrame, threshold: float) -> None:
    with pytest.raises(DataError, match="threshold is a mean rating"):
        clean(tweets, threshold)


def test_threshold_drops_the_near_neutral(tweets: pd.DataFrame) -> None:
    for threshold in (0.25, 0.5, 2.0):
        cleaned, counts = clean(tweets, threshold)
        assert cleaned["rating"].abs().min() >= threshold
        assert counts.near_neutral == (tweets["rating"].abs() < threshold).sum()


def test_empty_texts_and_duplicates_are_dropped_and_counted() -> None:
    texts = ["Good &amp; bad", "good & BAD", " \t", "@me fine", "@you fine", "meh"]
    ratings = [2.0, -2.0, 1.0, 1.0, 1.0, 0.1]
    frame = pd.DataFrame({"text": texts, "rating": ratings})
    cleaned, counts = clean(frame)
    assert cleaned["text"].tolist() == ["Good & bad", "@user fine"]
    assert (counts.near_neutral, counts.empty, counts.duplicates, counts.kept) == (1, 1, 2, 2)
    assert str(counts) == ("6 texts published, 1 near-neutral dropped, 1 empty dropped, 2 duplicates dropped, 2 kept")
    assert frame["text"].tolist() == texts  # the caller's frame is left alone


# --- splitting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["tweets", "news"])
def test_no_text_stands_in_two_splits(domain: str) -> None:
    texts = {name: {text.casefold() for text in split["text"]} for name, split in load_sentiment(domain).items()}
    assert not texts["train"] & texts["test"]
    assert not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"]


def test_duplicates_would_have_leaked(tweets: pd.DataFrame) -> None:
    """Else the test above would say nothing: the published tweets do hold the same text twice."""
    assert tweets["text"].map(clean_text).str.casefold().duplicated().sum() >= 50


def test_splits_have_the_asked_sizes_and_the_same_share_of_positives(splits: DatasetDict) -> None:
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 2191,
        "validation": 338,
        "test": 843,
    }
    shares = [sum(split["label"]) / len(split) for split in splits.values()]
    assert max(shares) - min(shares) < 0.002
    other = load_sentiment("tweets", validation=0.2, test=0.3)
    assert len(other["validation"]) == pytest.approx(0.2 * 3372, abs=1)
    assert len(other["test"]) == pytest.approx(0.3 * 3372, abs=1)


def test_label_is_the_sign_of_the_rating(splits: DatasetDict) -> None:
    for split in splits.values():
        assert split.features["label"].names == ["negative", "positive"]
        for row in split:
            assert row["label"] == (row["rating"] > 0)
            assert row["rating"] == pytest.approx(sum(row["ratings"]) / len(row["ratings"]))


def test_one_seed_one_split(splits: DatasetDict) -> None:
    again = load_sentiment("tweets")
    other = load_sentiment("tweets", seed=1)
    for name in splits:
        assert again[name]["id"] == splits[name]["id"]
        assert other[name]["id"] != splits[name]["id"]


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.2), (0.2, 0.0), (0.5, 0.5), (-0.1, 0.3)])
def test_bad_shares(validation: float, test: float) -> None:
    with pytest.raises(DataError, match="leave room for train"):
        load_sentiment("tweets", validation=validation, test=test)


# --- encoding --------------------------------------------------------------------------------------------------------


def test_encode(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = encode(["It is good", "no"], [1, 0], tokenizer)
    assert tokenizer.decode(rows[0]["input_ids"]) == "[CLS] it is good [SEP]"
    assert rows[0]["attention_mask"] == [1] * 5
    assert [row["labels"] for row in rows] == [1, 0]
    assert "labels" not in encode(["no"], None, tokenizer)[0]


@pytest.mark.parametrize("text", ["", " \n", None])
def test_empty_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    with pytest.raises(DataError, match="text 1 is empty or no string"):
        encode(["fine", text], [1, 0], tokenizer)


def test_wrong_number_of_labels(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="2 texts and 1 labels"):
        encode(["a", "b"], [1], tokenizer)


def test_text_longer_than_the_model_is_cut_with_one_warning(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 512 tokens") as caught:
        rows = encode(["word " * 600, "short"], [1, 0], tokenizer)
    assert len(caught) == 1
    assert len(rows[0]["input_ids"]) == 512
    assert rows[0]["input_ids"][-1] == tokenizer.sep_token_id
    with pytest.warns(UserWarning, match="longer than 4 tokens"):
        assert len(encode(["one two three four"], [1], tokenizer, max_length=4)[0]["input_ids"]) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(["one two three four"], [1], tokenizer, max_length=9999)


@pytest.mark.parametrize("max_length", [0, -1, 2])
def test_max_length_must_leave_room_for_a_word(tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    with pytest.raises(DataError, match="max_length"):
        encode(["one two"], [1], tokenizer, max_length=max_length)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lengths(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [len(row["input_ids"]) for row in encode(list(splits["train"]["text"]), None, tokenizer)]


def padding(lengths: list[int], batches: list[list[int]]) -> float:
    """Share of all positions that hold padding."""
    filled = sum(lengths[i] for batch in batches for i in batch)
    return 1 - filled / sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 10_000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_text_comes_once_an_epoch(lengths: list[int], batch_size: int, shuffle: bool) -> None:
    sampler = LengthBucketedSampler(lengths, batch_size, shuffle)
    for _ in range(2):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        # Only the last batch may be short; accelerate's splitting over processes relies on it.
        assert all(len(batch) == batch_size for batch in batches[:-1])


def test_batches_hold_texts_of_similar_length(lengths: list[int]) -> None:
    plain = [list(range(start, min(start + 32, len(lengths)))) for start in range(0, len(lengths), 32)]
    bucketed = padding(lengths, list(LengthBucketedSampler(lengths, 32)))
    ordered = padding(lengths, list(LengthBucketedSampler(lengths, 32, shuffle=False)))
    assert padding(lengths, plain) > 0.35
    assert bucketed < 0.06
    assert ordered < 0.03


def test_orders_follow_from_the_seed(lengths: list[int]) -> None:
    one, same, other = (LengthBucketedSampler(lengths, 32, seed=seed) for seed in (3, 3, 4))
    first, second = list(one), list(one)
    assert first != second
    assert [list(same), list(same)] == [first, second]
    assert list(other) != first
    evaluation = LengthBucketedSampler(lengths, 32, shuffle=False)
    assert list(evaluation) == list(evaluation)


def test_long_batches_do_not_all_come_last(lengths: list[int]) -> None:
    """Shuffled batches: the mean position of the longer half of them lies near the middle."""
    longest = [max(lengths[i] for i in batch) for batch in LengthBucketedSampler(lengths, 8)]
    order = sorted(range(len(longest)), key=lambda i: longest[i])
    assert 0.4 < sum(order[len(order) // 2 :]) / len(order[len(order) // 2 :]) / len(order) < 0.6


def test_bad_batches() -> None:
    with pytest.raises(DataError, match="batch_size must be at least 1, got 0"):
        LengthBucketedSampler([3, 4], 0)
    with pytest.raises(DataError, match="no texts to batch"):
        LengthBucketedSampler([], 4)


def test_loader_pads_each_batch_to_its_own_longest_text(
    splits: DatasetDict, tokenizer: PreTrainedTokenizerBase
) -> None:
    part = splits["train"].select(range(50))
    loader = make_loader(part, tokenizer, batch_size=8, shuffle=True, seed=1)
    seen = 0
    for batch in loader:
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]
        assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()
        seen += len(batch["labels"])
    assert seen == 50


def test_loader_keeps_text_and_label_together(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> None:
    part = splits["train"].select(range(40))
    expected = sorted(
        (tokenizer.decode(tokenizer(row["text"])["input_ids"]), row["label"], row["soft_label"]) for row in part
    )
    got = []
    hard, soft = (make_loader(part, tokenizer, batch_size=1, label=label) for label in ("label", "soft_label"))
    for batch, soft_batch in zip(hard, soft, strict=True):  # a batch of one
        assert batch["input_ids"].shape[0] == 1
        assert soft_batch["labels"].is_floating_point()
        text = tokenizer.decode(batch["input_ids"][0])
        got.append((text, batch["labels"].item(), pytest.approx(soft_batch["labels"].item(), abs=1e-6)))
    assert sorted(got, key=lambda row: row[:2]) == expected


def test_a_split_without_labels(splits: DatasetDict, tokenizer: PreTrainedTokenizerBase) -> None:
    part = splits["test"].select(range(6))
    texts = part.select_columns(["text"])
    with pytest.raises(
        DataError, match=r"there is no column 'label' among text: .*label=None for texts without labels"
    ):
        make_loader(texts, tokenizer)
    with pytest.raises(DataError, match="there is no column 'text' among label"):
        make_loader(part.select_columns(["label"]), tokenizer)
    batch, labelled = (
        next(iter(loader)) for loader in (make_loader(texts, tokenizer, label=None), make_loader(part, tokenizer))
    )
    assert set(batch) == {"input_ids", "attention_mask"} == set(labelled) - {"labels"}
    assert (batch["input_ids"] == labelled["input_ids"]).all()
