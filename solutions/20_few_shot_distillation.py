# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 20: Few-shot distillation
#
# **You will**
#
# * write the loss for texts of which only a few have a label,
# * turn twenty people's ratings into the probabilities of a teacher,
# * walk through the four steps with 64 labelled tweets and a teacher that has never seen a tweet,
# * give the student a bad teacher, and look for signs of it that need no label.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *Few-shot distillation* first.

# %%
# {{ install }}

# %%
from dataclasses import replace

import numpy as np
import torch

from course_utils import (
    TrainingConfig,
    check,
    evaluate,
    fit,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
)
from course_utils.distillation import (
    FewShotConfig,
    cut_layers,
    draw_labels,
    few_shot_student,
    people_logits,
    teacher_logits,
    without_labels,
)
from course_utils.plots import bars

tweets = load_sentiment("tweets")
train = tweets["train"]
print(f"{len(train):,} tweets to learn from, {sum(train['label']) / len(train):.1%} of them positive")

# %% [markdown]
# ## Exercise 1: a loss for texts with and without a label
#
# A text without a label has the label −100 (`NO_LABEL`). The cross-entropy is the mean over the texts *with* a label;
# the loss on soft labels is the mean over *all* texts:
#
# $$\text{loss} = a \cdot \mathrm{CE} + (1 - a) \cdot T^2\, \mathrm{KL}(\text{teacher} \,\|\, \text{student})$$
#
# `soft_label_loss(student, teacher, T)` gives the second part. Most batches hold few labels, and some none at all.


# %% tags=["exercise", "points:3"]
from course_utils.distillation import NO_LABEL, soft_label_loss


def few_label_loss(student, teacher, labels, a, T):
    """a · CE over the labelled texts + (1 − a) · soft_label_loss over all; logits (texts, classes), labels (texts,)."""
    ### BEGIN SOLUTION
    # Hint: torch.nn.functional.cross_entropy leaves labels of −100 out; where no label is left it gives NaN.
    soft = (1 - a) * soft_label_loss(student, teacher, T)
    if (labels == NO_LABEL).all():
        return soft
    return a * torch.nn.functional.cross_entropy(student, labels) + soft
    ### END SOLUTION


# %% tags=["check"]
check("few_shot_distillation.loss", few_label_loss)

# %% [markdown]
# ## Exercise 2: people as a teacher
#
# Each tweet was rated by some twenty people, from −4 to 4. Count them as votes for *positive*: a rating above 0 is one
# vote, a rating of 0 is half a vote.


# %% tags=["exercise", "points:2"]
def positive_share(ratings):
    """The share of votes for positive, from 0 to 1; `ratings` is a list of whole numbers."""
    ### BEGIN SOLUTION
    # Hint: add 1, 0.5 or 0 for each rating, and divide by their number.
    votes = [1.0 if rating > 0 else 0.5 if rating == 0 else 0.0 for rating in ratings]
    return sum(votes) / len(votes)
    ### END SOLUTION


# %% tags=["check"]
check("few_shot_distillation.votes", positive_share)

# %% [markdown]
# What a label hides: two tweets with the same label, and how the votes were spread.

# %%
for row in (int(np.argmax(train["soft_label"])), int(np.argmin(np.abs(np.array(train["soft_label"]) - 0.65)))):
    print(f"label {train['label'][row]}, share {train['soft_label'][row]:.2f}: {train['text'][row]}")

# %% [markdown]
# ## Exercise 3: what a teacher believes of itself
#
# If a teacher's probabilities were honest, it would be right as often as it says: the mean over the texts of the
# probability of its likelier class. This needs no label at all. Write it.


# %% tags=["exercise", "points:2"]
def expected_accuracy(logits):
    """The share of right answers that a teacher expects of itself, from its logits (texts, classes)."""
    ### BEGIN SOLUTION
    # Hint: softmax over the classes, the larger one of each text, and the mean.
    return torch.softmax(logits, dim=-1).amax(dim=-1).mean()
    ### END SOLUTION


# %% tags=["check"]
check("few_shot_distillation.expected", expected_accuracy)

# %% [markdown]
# ## The task
#
# 320 tweets, of which we may read 64 labels. The student is two layers of MiniLM as it was pretrained. The table of
# token vectors stays frozen, in student and teacher. All texts of the lab are short ones, so that the lab is short too.


# %%
def short(dataset, count):
    """The first texts with fewer than 90 characters."""
    rows = [row for row, text in enumerate(dataset["text"]) if len(text) < 90]
    return dataset.select(rows[:count])


texts = short(train, 320)
labelled = draw_labels(texts, 64, seed=0)
few = without_labels(texts, labelled)
print(f"{len(few)} tweets, {sum(label != NO_LABEL for label in few['label'])} with a label")


# %% tags=["nbval-ignore-output"]
def backbone(layers):
    """MiniLM with these layers, its token vectors frozen."""
    model, _ = load_classifier("minilm")
    student = cut_layers(model, layers)
    student.get_input_embeddings().requires_grad_(False)
    return student


large, small = (1, 2, 3, 4, 5, 6), (3, 6)


_, tokenizer = load_classifier("minilm")
judged = short(tweets["validation"], 128)
validation = make_loader(judged, tokenizer, 64)
floor = majority_accuracy(list(texts["label"]), list(judged["label"]))
found = {}

alone = FewShotConfig(tune=TrainingConfig(learning_rate=5e-4, epochs=1), tune_steps=48)
student = few_shot_student(backbone(small), few, None, tokenizer, validation, alone)
found["64 labels only"] = evaluate(student, validation).accuracy
print(f"64 labels only: {found['64 labels only']:.1%}, floor {floor:.1%}")

# %% [markdown]
# ## Step 1: a teacher
#
# Its knowledge must come from elsewhere: with thousands of labelled tweets nobody would need this chapter. Ours reads
# sentences of product reviews, a related task, and not one tweet.

# %% tags=["nbval-ignore-output"]
lesson = make_loader(short(load_sentiment("products")["train"], 512), tokenizer, 16, shuffle=True)
teacher = backbone(large)
fit(teacher, lesson, validation, TrainingConfig(learning_rate=2e-4, epochs=1))
found["the teacher itself"] = evaluate(teacher, validation).accuracy
print(f"the teacher of reviews, on tweets: {found['the teacher itself']:.1%}")

# %% [markdown]
# ## Step 2: its probabilities

# %% tags=["nbval-ignore-output"]
answers = teacher_logits(teacher, few, tokenizer)
for row in range(4):
    print(f"{few['text'][row][:60]:62} positive {torch.softmax(answers[row], -1)[1]:.1%}")
believed = torch.softmax(answers, -1).amax(-1).mean()
print(f"it expects to be right on {believed:.1%} of the tweets")

# %% [markdown]
# ## Steps 3 and 4: teach, then tune

# %% tags=["nbval-ignore-output"]
recipe = FewShotConfig(passes=3, batch_size=16, tune_steps=20)
step_3 = replace(recipe, tune_steps=0)
student = few_shot_student(backbone(small), few, answers, tokenizer, validation, step_3)
after_3 = evaluate(student, validation)
few_shot_student(student, few, None, tokenizer, validation, recipe)  # no answers: step 4 alone
after_4 = evaluate(student, validation)
for title, scores in (("after step 3", after_3), ("after step 4", after_4)):
    found[title] = scores.accuracy
    print(f"{title}: accuracy {scores.accuracy:.1%}, ROC-AUC {scores.roc_auc:.3f}")
bars(found, "validation accuracy", floor)

# %% [markdown]
# ROC-AUC asks only for the *order*: is a positive tweet scored above a negative one? When step 4 lifts the accuracy and
# leaves ROC-AUC about where it was, the student had the order already, and a few labels have told it where to draw the
# line.

# %%
assert found["after step 3"] > floor + 0.05
assert found["after step 4"] > found["64 labels only"] - 0.03
print("the student has learnt from a teacher that never saw a tweet")

# %% [markdown]
# ## A bad teacher
#
# Step 1 left out: a teacher whose head was never trained. Before we use it, we look for signs that need no label. What
# does it expect of itself, and does it ever change its mind?

# %% tags=["nbval-ignore-output"]
nobody = teacher_logits(backbone(small), few, tokenizer)
for title, logits in (("teacher of reviews", answers), ("untrained teacher", nobody)):
    probabilities = torch.softmax(logits, -1)
    positive = (logits.argmax(-1) == 1).float().mean()
    print(f"{title:20} expects {probabilities.amax(-1).mean():.1%} right, calls {positive:.1%} positive")

student = few_shot_student(backbone(small), few, nobody, tokenizer, validation, step_3)
found["taught by nobody"] = evaluate(student, validation).accuracy
bars(found, "validation accuracy", floor)

# %%
assert found["taught by nobody"] < found["after step 4"] - 0.03
print("a teacher that knows nothing adds nothing to the labels")

# %% [markdown]
# ## Your experiment: people as the teacher
#
# The same recipe, with the votes of the raters in place of the teacher's probabilities. This is no few-shot learning
# any more, because twenty people have read every tweet; it shows how much a better teacher would bring. Change one
# thing, and run the cell again. Ideas:
#
# * 16 labels or 256, with a teacher and without. Where does it help most?
# * no label at all: `replace(step_3, loss=DistillationConfig(hard=0))` on `without_labels(texts, [])`, and no step 4.
# * film reviews for the teacher: `load_sentiment("movies")`. They are further from tweets.

# %% tags=["nbval-ignore-output"]
votes = people_logits(texts)  # their softmax gives the shares of the votes
student = few_shot_student(backbone(small), few, votes, tokenizer, validation, step_3)
print(
    f"taught by people: {evaluate(student, validation).accuracy:.1%}, by the teacher of reviews {after_3.accuracy:.1%}"
)

# %% [markdown]
# ## Take away
#
# * Few-shot distillation needs texts without labels, and a teacher that knows the task from elsewhere.
# * The student becomes about as good as its teacher; a few labels can make it better. A bad teacher adds nothing.
# * Print what the teacher expects of itself, and how often it gives each answer, before you believe it. A few labels of
#   your own, kept apart, are the better judge.
