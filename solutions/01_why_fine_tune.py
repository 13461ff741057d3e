# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 1: Why fine-tune?
#
# **You will**
#
# * measure the floor that every classifier must beat,
# * turn one pretrained model into a classifier in four ways, and compare what each learns from 448 tweets,
# * work out what each way costs in memory.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *Why fine-tune?* first.

# %%
# {{ install }}

# %%
import numpy as np

from course_utils import (
    FullConfig,
    HeadOnlyConfig,
    LoRAConfig,
    TrainingConfig,
    check,
    count_parameters,
    fit,
    inject,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
)
from course_utils.plots import bars, training_curves

# %% [markdown]
# ## The task
#
# Each tweet was rated by at least 20 people from −4 (very negative) to +4 (very positive). The label is the sign of
# the mean rating. Tweets whose mean is within 0.5 of zero are left out.

# %%
tweets = load_sentiment("tweets")
for split in tweets:
    print(f"{split:10} {len(tweets[split]):5,} tweets, {np.mean(tweets[split]['label']):.1%} positive")

# %%
for row in tweets["train"].select(range(4)):
    print(f"{row['rating']:+.2f}  {row['text']}")

# %% [markdown]
# ## Exercise 1: the floor
#
# Two thirds of the tweets are positive. A program that always answers “positive” reads nothing and is still right
# most of the time. Before you train anything, know this number.
#
# Write a function that takes the labels of the training split and of the test split. It returns the accuracy **on the
# test labels** of always answering the most common **training** label.


# %% tags=["exercise", "points:1"]
def majority_baseline(train_labels, test_labels):
    """Accuracy on `test_labels` of always answering the most common class of `train_labels`."""
    ### BEGIN SOLUTION
    # Hint: find the most common class of train_labels, then count how often it stands in test_labels.
    answer = max(set(train_labels), key=list(train_labels).count)
    return sum(label == answer for label in test_labels) / len(test_labels)
    ### END SOLUTION


# %% tags=["check"]
check("why.majority", majority_baseline)

# %%
judged = tweets["validation"].select(range(128))  # enough to see what happens, and the lab stays short
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))
print(f"always 'positive' is right in {floor:.1%} of these validation tweets")

# %% [markdown]
# ## Exercise 2: keep the body, train the head
#
# A classifier of `transformers` has two parts: the pretrained **body** (here `model.bert`) and a new, random **head**
# (`model.classifier`). The cheapest way to get a classifier is *feature extraction*: leave the body alone and train the
# head.
#
# Write a function that freezes everything but the head. A parameter is frozen when its `requires_grad` is `False`.


# %% tags=["exercise", "points:2"]
def freeze_body(model):
    """Freeze all parameters of `model` except those of `model.classifier`."""
    ### BEGIN SOLUTION
    # Hint: model.named_parameters() gives the name and the parameter.
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("classifier.")
    ### END SOLUTION


# %% tags=["check"]
check("why.freeze", freeze_body)

# %% [markdown]
# ## Four ways to a classifier
#
# From here on the lab uses `course_utils`, which does the same with one line for every method. We run four ways on the
# same 448 tweets, 28 steps each, and look at 128 validation tweets.
#
# 1. **From scratch**: the same architecture with random weights, all of them trained.
# 2. **Head only**: pretrained body, frozen; only the head is trained.
# 3. **Full fine-tuning**: pretrained, and all weights are trained.
# 4. **LoRA**: pretrained, frozen, and small additions are trained (chapter 9 explains them).

# %%
WAYS = {
    "from scratch": (FullConfig(), False, 5e-4),
    "head only": (HeadOnlyConfig(), True, 5e-2),
    "full fine-tuning": (FullConfig(), True, 3e-4),
    "LoRA": (LoRAConfig(rank=8, alpha=16), True, 8e-3),
}
counts = {}
for title, (config, pretrained, _) in WAYS.items():
    model, tokenizer = load_classifier("minilm", pretrained=pretrained)
    counts[title] = count_parameters(inject(model, config))
    print(f"{title:17} {counts[title]}")

# %% [markdown]
# To use another backbone, replace `"minilm"` by `"bert-base-uncased"` (needs the network), or by a folder with a saved
# model. Nothing else changes.


# %% tags=["nbval-ignore-output"]
def learn(config, pretrained, learning_rate, texts=448):
    """Train one way on the first `texts` training tweets and return its history."""
    model, tokenizer = load_classifier("minilm", pretrained=pretrained)
    inject(model, config)
    train = make_loader(tweets["train"].select(range(texts)), tokenizer, 16, shuffle=True)
    validation = make_loader(judged, tokenizer, 64)
    return fit(model, train, validation, TrainingConfig(learning_rate=learning_rate, epochs=1))


histories = {title: learn(*way) for title, way in WAYS.items()}
accuracies = {title: history.evaluations[-1]["accuracy"] for title, history in histories.items()}
bars(accuracies, "validation accuracy after 28 steps", floor)

# %% [markdown]
# The dashed line is the floor. What stays at it has learnt nothing, whatever its loss did.

# %% tags=["nbval-ignore-output"]
training_curves(histories, floor)

# %%
# What is trained is never compared digit by digit: machines differ. These bands hold on all of them.
assert accuracies["from scratch"] < floor + 0.08, "random weights learn next to nothing from 448 tweets"
assert accuracies["full fine-tuning"] > floor + 0.12
assert accuracies["LoRA"] > floor + 0.12
assert accuracies["head only"] < accuracies["LoRA"]
print("from scratch stays near the floor; full fine-tuning and LoRA leave it far behind")

# %% [markdown]
# ## Exercise 3: what training costs in memory
#
# In fp32, a number takes 4 bytes. Training with Adam holds
#
# * every weight, frozen or not,
# * a gradient for each **trained** weight,
# * two running averages for each **trained** weight (of the gradient, and of its square).
#
# Activations come on top; they depend on the batch, and on the length of the texts, not on these counts.
#
# Write a function that returns the bytes for a model of `total` weights, of which `trainable` are trained.


# %% tags=["exercise", "points:2"]
def training_bytes(total, trainable):
    """Bytes for weights, gradients and Adam's averages in fp32, activations not counted."""
    ### BEGIN SOLUTION
    # Hint: weights for all, and three more numbers for each trained one.
    return 4 * total + 4 * trainable + 2 * 4 * trainable
    ### END SOLUTION


# %% tags=["check"]
check("why.memory", training_bytes)

# %%
for title, count in counts.items():
    megabytes = (4 * count.total + 12 * count.trainable) / 1e6
    print(f"{title:17} {megabytes:6.1f} MB for {count.trainable:>10,} trained of {count.total:,} weights")

# %% [markdown]
# Freezing saves three quarters of this memory, and never more: the frozen weights must still be there. That is why
# "0.3% of the parameters" does not mean "0.3% of the memory".
#
# ## Your experiment
#
# Change a number, run the cell again, and look. Ideas: 1,024 tweets instead of 224; a learning rate ten times as high
# or as low; the head only with all 2,191 tweets. **Question:** how many tweets, and so how many steps, does LoRA need
# to leave the floor? As the cell stands, with half of the tweets, it does not.

# %% tags=["nbval-ignore-output"]
experiment = learn(LoRAConfig(rank=8, alpha=16), pretrained=True, learning_rate=8e-3, texts=224)
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")

# %% [markdown]
# ## The same in `peft`
#
# In your own project you may use the reference library. It trains the same number of parameters.

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import LoraConfig, get_peft_model

model, _ = load_classifier("minilm")
settings = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
peft_model = get_peft_model(model, settings)
peft_model.print_trainable_parameters()

# %% [markdown]
# **Look at the total.** peft counts the head twice: it keeps a frozen copy of it beside the trained one. So its share
# is a little lower than ours.
#
# ## Take away
#
# * Know the floor before you train.
# * With few labels, pretrained weights are worth more than anything else.
# * A frozen body with a new head is cheap, and it cannot adapt. LoRA can, for 0.33% of the weights.
