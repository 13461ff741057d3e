# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 3: Data
#
# **You will**
#
# * clean real tweets and find their duplicates,
# * compute by hand how far two annotators agree,
# * split texts in three without a leak, and spot a leak in a split that somebody else made.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *Data* first.

# %%
# {{ install }}

# %%
import random

import numpy as np
from sklearn.metrics import cohen_kappa_score
from sklearn.model_selection import StratifiedGroupKFold

from course_utils import check, load_classifier, load_sentiment
from course_utils.data import (
    AUGMENTATIONS,
    DOMAINS,
    SENTENCES,
    clean,
    clean_text,
    load_ratings,
    near_duplicate_groups,
    three_way_split,
)
from course_utils.evaluation import cohen_kappa, count_words, krippendorff_alpha, right_answers
from course_utils.plots import bars

# %% [markdown]
# ## Look at the raw texts first
#
# `load_ratings` gives the tweets as they were published, with every single rating.

# %%
tweets = load_ratings("tweets")
for row in (216, 283, 381, 559):
    votes = tweets["ratings"][row]
    print(f"mean {tweets['rating'][row]:+.2f} of {len(votes)} ratings  {tweets['text'][row]}")

# %% [markdown]
# What the course does with a text is one function. It decodes HTML, replaces names and addresses, and folds spaces. It
# leaves upper case, punctuation and emoticons alone: they carry the mood.

# %%
example = "@anonymous   I &lt;3 this!!! SO good :) http://url_removed"
print(example)
print(clean_text(example))

# %% [markdown]
# ## Exercise 1: remove duplicates
#
# Two texts are the same when they are equal after `clean_text`, no matter whether in upper or lower case. Write a
# function that returns the **positions** of the texts that stay, in their order. Of several copies the first one stays.
# (Why positions? The labels must follow the texts.)


# %% tags=["exercise", "points:2"]
from course_utils.data import clean_text


def positions_to_keep(texts):
    """Positions of the texts that have no earlier copy."""
    ### BEGIN SOLUTION
    # Hint: `clean_text(text).casefold()` is the same for all copies. Remember in a set which ones you have seen.
    seen, positions = set(), []
    for position, text in enumerate(texts):
        key = clean_text(text).casefold()
        if key not in seen:
            seen.add(key)
            positions.append(position)
    return positions
    ### END SOLUTION


# %% tags=["check"]
check("data.deduplicate", positions_to_keep)

# %% [markdown]
# The course's `clean` does this, and drops texts whose mean rating is near zero.

# %%
for domain in DOMAINS:
    print(f"{domain:9} {clean(load_ratings(domain))[1]}")

# %% [markdown]
# ## Exercise 2: do two annotators agree?
#
# Two people label the same texts. $p_o$ is the share of texts on which they agree. $p_e$ is the share on which they
# would agree by chance: for each class, multiply the share of texts that the first person put into it by the second
# person's share, and add these products up. Then
#
# $$\kappa = \frac{p_o - p_e}{1 - p_e}$$
#
# Write it without scikit-learn. The classes may be numbers or words, and there may be more than two.


# %% tags=["exercise", "points:2"]
def kappa(first, second):
    """Cohen's kappa of two lists of labels of one length."""
    ### BEGIN SOLUTION
    # Hint: set(first) | set(second) holds all classes, first.count(c) / len(first) is a share.
    n = len(first)
    agreement = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(first.count(c) / n * second.count(c) / n for c in set(first) | set(second))
    return (agreement - chance) / (1 - chance)
    ### END SOLUTION


# %% tags=["check"]
check("data.kappa", kappa)

# %% [markdown]
# Now on real labels. Each tweet was rated by 20 people or more. Draw two ratings of each tweet, turn them into −1, 0 or
# 1, and ask how far they agree.

# %%
chance = random.Random(0)
drawn = [chance.sample(list(np.sign(votes)), 2) for votes in tweets["ratings"]]
first, second = ([int(pair[side]) for pair in drawn] for side in (0, 1))
print(f"plain agreement {np.mean(np.array(first) == np.array(second)):.1%}")
print(f"Cohen's kappa   {cohen_kappa(first, second):.3f}")
print(f"scikit-learn    {cohen_kappa_score(first, second):.3f}")

# %% [markdown]
# Krippendorff's α takes all ratings at once. With `interval`, +1 against +3 is a small disagreement, and −3 against +3
# a large one.

# %%
for domain in DOMAINS:
    ratings = load_ratings(domain)["ratings"]
    signs = [list(np.sign(votes)) for votes in ratings]
    print(
        f"{domain:9} alpha of the ratings {krippendorff_alpha(list(ratings)):.2f}, "
        f"of their signs {krippendorff_alpha(signs, 'nominal'):.2f}"
    )

# %% [markdown]
# People agree least about the news: an editorial reports something bad in neutral words, and is that negative? Here
# are tweets that split their 20 raters.

# %%
for _, row in tweets[tweets["id"].isin(["1132", "1362", "2210", "2301", "3109"])].iterrows():
    votes = np.sign(row["ratings"])
    print(f"{(votes > 0).sum():2} positive, {(votes < 0).sum():2} negative   {clean_text(row['text'])}")

# %% [markdown]
# Read them and decide: what should a guideline say, so that two people give the same label?
#
# ## Exercise 3: three parts, no leak
#
# Write a function that takes the labels and a seed, and returns three lists of positions: **train, validation, test**
# with 65%, 10% and 25% of the texts, each with the same share of every class. `train_test_split` makes two parts; call
# it twice.


# %% tags=["exercise", "points:3"]
import numpy as np
from sklearn.model_selection import train_test_split


def split_in_three(labels, seed):
    """Positions for train (65%), validation (10%) and test (25%), stratified."""
    ### BEGIN SOLUTION
    # Hint: split positions, not texts. The second call sees 75% of the texts: which share of them is 10% of all?
    # Hint: `stratify` takes the labels of what is split in this call.
    labels = np.array(labels)
    rest, test = train_test_split(np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=0.10 / 0.75, stratify=labels[rest], random_state=seed)
    return train, validation, test
    ### END SOLUTION


# %% tags=["check"]
check("data.split", split_in_three)

# %% [markdown]
# What `stratify` is good for shows on small sets. Here are 100 labels, 10 of them rare, split 200 times.

# %%
labels = np.array([0] * 10 + [1] * 90)
for stratified in (False, True):
    parts = [three_way_split(labels, seed, stratified) for seed in range(200)]
    missing = sum((labels[validation] == 1).all() for _, validation, _ in parts)
    rare = [int((labels[test] == 0).sum()) for _, _, test in parts]
    title = "with stratify" if stratified else "without stratify"
    print(f"{title:16} {min(rare)} to {max(rare)} rare texts of 25 in test; {missing} times none in validation")

# %% [markdown]
# ## Exercise 4: spot the leak
#
# A colleague sends you a training part and a test part. Write a function that says which share of the **test texts**
# also stands in training, when compared as in exercise 1.


# %% tags=["exercise", "points:2"]
def leaked_share(train_texts, test_texts):
    """The share of the test texts that were trained on."""
    ### BEGIN SOLUTION
    # Hint: put the keys of the training texts into a set, then go through the test texts one by one.
    known = {clean_text(text).casefold() for text in train_texts}
    return sum(clean_text(text).casefold() in known for text in test_texts) / len(test_texts)
    ### END SOLUTION


# %% tags=["check"]
check("data.leak", leaked_share)

# %% [markdown]
# Here is a real case. The news file holds sentences that were published twice. We split it as it is, train the word
# counter of chapter 1, and look at the test texts that also stand in training apart from the others.

# %% tags=["nbval-ignore-output"]
news = load_ratings("news")
news = news[news["rating"].abs() >= 0.5]
keys = news["text"].map(clean_text).str.casefold().to_numpy()
labels = (news["rating"] > 0).to_numpy().astype(int)
train, _, test = three_way_split(labels, seed=0)
right = right_answers(count_words(keys), labels, train, test)
leaked = np.isin(keys[test], keys[train])
found = {"all": right.mean(), "trained on": right[leaked].mean(), "really new": right[~leaked].mean()}
print(f"{leaked.sum()} of {len(test)} test texts also stand in training")
bars(found, "accuracy on the test texts")

# %%
assert found["trained on"] > 0.9
assert found["really new"] < found["all"] < 0.8
print("what was trained on is known by heart, and lifts the score of the whole test")

# %% [markdown]
# ## Copies that are not equal
#
# Our own tweets have no equal copies left. But look at this: the authors wrote variants of some tweets, to find out
# what capitals and exclamation marks do.

# %%
cleaned, _ = clean(tweets)
families = near_duplicate_groups(list(cleaned["text"]))
sizes = np.bincount(families)
print(f"{(sizes > 1).sum()} families hold {sizes[sizes > 1].sum()} of {len(cleaned):,} tweets")
one = families[cleaned["text"].str.startswith("That was fun. I like winning")]
for text in cleaned["text"][families == one]:
    print("  ", text)

# %%
splits = load_sentiment("tweets")
family_of = dict(zip(cleaned["id"], families, strict=True))
in_training = {family_of[name] for name in splits["train"]["id"]}
relatives = sum(family_of[name] in in_training for name in splits["test"]["id"])
print(f"{relatives} of {len(splits['test'])} test tweets have a relative in training")

# %% [markdown]
# The chapter says how much that matters. In your own project, keep a family on one side: split families, not texts.
#
# ## Can the backbone read your texts?
#
# The tokenizer of MiniLM was made for English. What it has no pieces for becomes `[UNK]`, and all unknown things look
# the same.

# %%
_, tokenizer = load_classifier("minilm")
for language, sentence in SENTENCES.items():
    tokens = tokenizer.tokenize(sentence)
    print(f"{language:8} {len(tokens):2} tokens, {tokens.count('[UNK]'):2} unknown: {' '.join(tokens[:9])} ...")

# %% [markdown]
# A German sentence falls into fragments that mean nothing in English. Of a Chinese one, most is lost. And two emoji
# that say a lot to a reader are one `[UNK]`.
#
# ## Your experiment
#
# Few labels, and four changed copies of each text. Change the kind of augmentation, the number of labels or the seed,
# and run the cell again. **Question:** how many seeds do you need before you believe that one kind helps? (The chapter
# took 30.)

# %% tags=["nbval-ignore-output"]
kind, few, seed = "negations deleted", 128, 0
print("kinds:", ", ".join(AUGMENTATIONS))
chosen, _ = train_test_split(np.arange(len(splits["train"])), train_size=few, random_state=seed)
own = [splits["train"]["text"][row] for row in chosen.tolist()]
own_labels = np.array(splits["train"]["label"])[chosen]
for copies in (0, 4):
    chance = random.Random(seed)
    more = own + [AUGMENTATIONS[kind](text, chance) for _ in range(copies) for text in own]
    every_label = np.concatenate([np.tile(own_labels, copies + 1), splits["validation"]["label"]])
    counts = count_words(more + list(splits["validation"]["text"]))
    train_rows, rows = np.arange(len(more)), np.arange(len(more), counts.shape[0])
    weight = np.full(len(more), 1 / (copies + 1))
    accuracy = right_answers(counts, every_label, train_rows, rows, strength=100, sample_weight=weight).mean()
    print(f"{few} tweets and {copies} copies of each: validation accuracy {accuracy:.1%}")

# %% [markdown]
# ## The same with scikit-learn
#
# `cohen_kappa_score` you have seen above. To keep families together **and** the classes balanced, take
# `StratifiedGroupKFold`: one of its four folds is a test part of about 25%.

# %%
folds = StratifiedGroupKFold(n_splits=4, shuffle=True, random_state=0)
train, test = next(folds.split(cleaned["text"], cleaned["label"], groups=families))
print(f"{len(train):,} and {len(test):,} tweets")
for title, part in (("train", train), ("test", test)):
    print(f"{title:5} {cleaned['label'].iloc[part].mean():.1%} positive")
print("families on both sides:", len(set(families[train]) & set(families[test])))

# %% [markdown]
# ## Take away
#
# * Clean little, remove duplicates, and only then split: three parts, two calls, both stratified.
# * Plain agreement flatters. Kappa and alpha take out what chance gives.
# * A test text that was trained on, or a near copy of it, makes the score too good.
