# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 6: A map of PEFT
#
# **You will**
#
# * put nine methods into their families, and predict what one of them costs in memory and in storage,
# * take one real training step with four methods, and count every byte of weights, gradients and optimiser,
# * train one method of each family on real tweets, and see what it has left untouched.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *A map of PEFT* first.

# %%
# {{ install }}

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open

from course_utils import (
    BitFitConfig,
    FullConfig,
    HoulsbyConfig,
    IA3Config,
    LastLayersConfig,
    LoRAConfig,
    MethodError,
    PfeifferConfig,
    PromptTuningConfig,
    PTuningConfig,
    TrainingConfig,
    VeRAConfig,
    check,
    count_parameters,
    eject,
    fit,
    inject,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
    merge,
    save,
    trainable_parameters,
)
from course_utils.plots import bars, training_curves
from course_utils.training import SHAPES, saved_for_backward, training_memory

# %% [markdown]
# ## Exercise 1: the families
#
# Here is what each method trains, the head aside.

# %%
METHODS = {
    "full fine-tuning": "every weight of the model",
    "BitFit": "the biases that the model has already",
    "bottleneck adapters": "new small networks between the layers",
    "(IA)³": "new vectors that scale keys, values and hidden numbers",
    "prompt tuning": "new vectors before the embedded text",
    "LoRA": "two thin matrices whose product is the change of a weight",
    "VeRA": "two vectors inside such a product; its two matrices are random and frozen",
    "LoRA and all biases": "LoRA's matrices, and the biases that the model has already",
    "distillation": "all weights of another, smaller model, on the answers of a large one",
}

# %% [markdown]
# Write a dictionary from each of these names to one of `"additive"`, `"selective"`, `"reparameterised"`, `"hybrid"`
# and `"none"`. "none" is for what is in no family of PEFT.

# %% tags=["exercise", "points:2"]
### BEGIN SOLUTION
# Hint: {"BitFit": ..., "LoRA": ..., and so on}. Ask of each method: what is trained, and was it there before?
families = {
    "full fine-tuning": "none",
    "BitFit": "selective",
    "bottleneck adapters": "additive",
    "(IA)³": "additive",
    "prompt tuning": "additive",
    "LoRA": "reparameterised",
    "VeRA": "reparameterised",
    "LoRA and all biases": "hybrid",
    "distillation": "none",
}
### END SOLUTION

# %% tags=["check"]
check("map_of_peft.families", families)

# %% [markdown]
# ## Exercise 2: the account of memory
#
# A model has `base` weights. A method trains `selected` of them, and puts `added` new numbers beside them, which are
# trained too. In fp32 each number takes 4 bytes. Adam keeps two averages for each trained number.
#
# Return three numbers: the bytes of all weights, of the gradients, and of Adam's averages.


# %% tags=["exercise", "points:2"]
def memory(base, selected, added):
    """Bytes of (weights, gradients, Adam's averages) in fp32."""
    ### BEGIN SOLUTION
    # Hint: the selected weights are part of the base, the added ones are not. Both are trained.
    trained = selected + added
    return 4 * (base + added), 4 * trained, 2 * 4 * trained
    ### END SOLUTION


# %% tags=["check"]
check("map_of_peft.memory", memory)

# %% [markdown]
# ## Exercise 3: count with and without the head
#
# Some papers count the head among the trained numbers, some do not. Write a function that returns both counts. The head
# is what is new: every module that the pretrained checkpoint did not bring, whatever its name; DistilBERT's is
# `pre_classifier` and `classifier`. Here it is `model.classifier`, so the names of its parameters begin with
# `classifier.`.


# %% tags=["exercise", "points:2"]
def count(model):
    """(trained numbers with the head, trained numbers without it)."""
    ### BEGIN SOLUTION
    # Hint: model.named_parameters() gives names and parameters; `requires_grad` says whether one is trained.
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    body = sum(numbers for name, numbers in trained.items() if not name.startswith("classifier."))
    return sum(trained.values()), body
    ### END SOLUTION


# %% tags=["check"]
check("map_of_peft.count", count)

# %% [markdown]
# ## Exercise 4: the file, and the deployed model
#
# After training, a task gets a file with all that was trained, in fp32. The frozen base stands in a file of its own,
# once for all tasks. Later the model answers: then the whole of it is in memory. If the method `merges`, its added
# numbers are folded into the weights first. The head is counted in `base` and in `selected`.
#
# Return two numbers: the bytes of the task's file, and the bytes of the deployed model.


# %% tags=["exercise", "points:2"]
def sizes(base, selected, added, merges):
    """Bytes of (the task's file, the deployed model) in fp32."""
    ### BEGIN SOLUTION
    # Hint: what was trained goes into the file. What answers is the base, and what could not be merged.
    return 4 * (selected + added), 4 * (base if merges else base + added)
    ### END SOLUTION


# %% tags=["check"]
check("map_of_peft.sizes", sizes)

# %% [markdown]
# ## One real step, every byte counted
#
# Full fine-tuning and one method of each family: BitFit selects, Pfeiffer's adapters are added, LoRA writes the change
# in another form. `inject` freezes the model, puts the method in, and leaves the head trainable.

# %%
STEP = {
    "full fine-tuning": FullConfig(),
    "BitFit": BitFitConfig(),
    "Pfeiffer adapters": PfeifferConfig(),
    "LoRA": LoRAConfig(rank=8, alpha=16),
}
for title, config in STEP.items():
    model, tokenizer = load_classifier("minilm")
    print(f"{title:17} {count_parameters(inject(model, config))}")

# %% [markdown]
# Now one step with 32 tweets, and then we ask each tensor for its size. Nothing is estimated here.


# %%
def size(tensors):
    """Bytes of these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def after_one_step(config):
    """Bytes of weights, gradients and Adam's averages after one real step; and the model."""
    model, tokenizer = load_classifier("minilm")
    inject(model, config).train()
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-3)
    model(**next(iter(make_loader(first_tweets, tokenizer, 32)))).loss.backward()
    optimizer.step()
    averages = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return (size(model.parameters()), size(gradients), size(averages)), model


tweets = load_sentiment("tweets")
first_tweets = tweets["train"].select(range(32))
counted = {}
print("megabytes          weights  gradients     Adam      sum   share trained")
for title, config in STEP.items():
    counted[title], model = after_one_step(config)
    megabytes = [f"{value / 1e6:8.3f}" for value in (*counted[title], sum(counted[title]))]
    print(
        f"{title:17} {megabytes[0]} {megabytes[1]:>10} {' '.join(megabytes[2:])} {count_parameters(model).share:14.2%}"
    )

# %% [markdown]
# The rule of exercise 2 must say the same, to the byte.

# %%
base = count_parameters(load_classifier("minilm")[0]).total
for title, config in STEP.items():
    numbers = count_parameters(inject(load_classifier("minilm")[0], config))
    rule = (4 * numbers.total, 4 * numbers.trainable, 8 * numbers.trainable)
    assert counted[title] == rule, title
    print(f"{title:17} {numbers.total - base:8,} numbers added: the rule and the tensors agree")

# %% [markdown]
# One thing is still missing: the activations that wait for the backward pass. PyTorch tells us about each tensor that
# it keeps. The rule of `course_utils.memory` knows only the shape of the model and of the batch.


# %% tags=["nbval-ignore-output"]
def kept_for_backward(config):
    """Bytes that the forward pass keeps for the backward pass, the model's own weights left out; the batch's shape."""
    model, tokenizer = load_classifier("minilm")
    batch = next(iter(make_loader(first_tweets, tokenizer, 32)))
    return saved_for_backward(inject(model, config), batch), batch["input_ids"].shape


activations = {}
for title, config in STEP.items():
    activations[title], (texts, tokens) = kept_for_backward(config)
rule = training_memory(SHAPES["minilm"], "full", "float32", batch=texts, length=tokens).activations
total = {title: sum(counted[title]) + activations[title] for title in STEP}
for title in STEP:
    share = total[title] / total["full fine-tuning"]
    print(f"{title:17} activations {activations[title] / 1e6:4.0f} MB, all {total[title] / 1e6:4.0f} MB ({share:.0%})")
print(f"the rule says {rule / 1e6:.0f} MB of activations for {texts} texts of {tokens} tokens")

# %%
full, lora = total["full fine-tuning"], total["LoRA"]
assert 0.5 < activations["LoRA"] / activations["full fine-tuning"] < 1.05
assert all(0.5 < kept / rule < 2 for kept in activations.values())
assert 0.25 < lora / full < 0.75
print("LoRA trains 0.33% of the weights and still needs between a quarter and three quarters of the memory")

# %% [markdown]
# With few weights to train the activations are the largest part. They fell a little, because a frozen matrix need not
# keep its input; but the gradient still travels through all layers, and what it needs on its way must wait for it.
# Longer texts or a larger batch make this part grow, and no method's count of parameters tells you so.
#
# ## One method of each family learns
#
# Each gets 32 steps on the same 512 tweets. The learning rates differ by method; chapter by chapter you will see why.
# For the family that selects we take the last layer. (BitFit selects too, but 32 steps are not enough for it.)


# %% tags=["nbval-ignore-output"]
LEARN = {
    "last layer only (selective)": (LastLayersConfig(layers=1), 1e-3),
    "Pfeiffer adapters (additive)": (PfeifferConfig(), 1e-2),
    "LoRA (reparameterised)": (LoRAConfig(rank=8, alpha=16), 8e-3),
}
judged = tweets["validation"].select(range(200))  # enough to see what happens, and the lab stays short
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))


def learn(model, learning_rate, texts=512):
    """Train what is trainable in the model on the first tweets."""
    train = make_loader(tweets["train"].select(range(texts)), tokenizer, 16, shuffle=True)
    return fit(model, train, make_loader(judged, tokenizer, 64), TrainingConfig(learning_rate=learning_rate, epochs=1))


models = {title: inject(load_classifier("minilm")[0], config) for title, (config, _) in LEARN.items()}
histories = {title: learn(models[title], rate) for title, (_, rate) in LEARN.items()}
training_curves(histories, floor)

# %%
accuracies = {title: history.evaluations[-1]["accuracy"] for title, history in histories.items()}
for title, accuracy in accuracies.items():
    assert accuracy > floor + 0.05, f"{title}: {accuracy:.1%} is too close to the floor of {floor:.1%}"
print("all three have left the floor, and each trained other numbers")

# %% [markdown]
# ## What was left untouched?
#
# "Frozen" is a promise that can be tested. We compare each trained model with a fresh one, tensor by tensor. LoRA and
# the adapters are taken out first, with `eject`.

# %%
fresh = {name: p for name, p in load_classifier("minilm")[0].named_parameters() if not name.startswith("classifier.")}
all_matrices = sum(old.dim() > 1 for old in fresh.values())
for title, model in models.items():
    try:
        eject(model)
        said = "taken out"
    except MethodError:
        said = "cannot be taken out"
    now = dict(model.named_parameters())
    matrices = sum(old.dim() > 1 and not torch.equal(old, now[name]) for name, old in fresh.items())
    if said == "taken out":
        assert all(torch.equal(old, now[name]) for name, old in fresh.items())  # the vectors too
    print(f"{title:29} {said:19}  {matrices} of {all_matrices} matrices differ from the pretrained ones")

# %% [markdown]
# Here the families differ. What is added, or stands beside a weight, can be taken out, and the old model is there
# again, bit for bit. What was selected has been overwritten: to go back you need a copy of the old weights.
#
# ## Trained, stored, deployed
#
# Three sizes that are often mixed up. We save each method, count the numbers in its file of weights, and merge where
# the method can be merged.

# %%
SIZES = {
    "full fine-tuning": FullConfig(),
    "BitFit": BitFitConfig(),
    "Houlsby adapters": HoulsbyConfig(),
    "(IA)³": IA3Config(),
    "prompt tuning": PromptTuningConfig(),
    "P-Tuning": PTuningConfig(),
    "LoRA": LoRAConfig(rank=8, alpha=16),
    "VeRA": VeRAConfig(),
}


def numbers_in_file(model):
    """How many numbers the checkpoint holds that is needed to answer."""
    with TemporaryDirectory() as folder:
        save(model, folder)
        file = next(Path(folder).glob("*_model.safetensors"))
        with safe_open(file, "pt") as tensors:
            return sum(tensors.get_tensor(name).numel() for name in list(tensors.keys()))


print("numbers             trained      stored    deployed")
stored = {}
for title, config in SIZES.items():
    model, _ = load_classifier("minilm")
    numbers = count_parameters(inject(model, config))
    stored[title] = numbers_in_file(model)
    try:
        deployed, said = count_parameters(merge(model)).total, ""
    except MethodError:
        deployed, said = numbers.total, "  not merged"
    print(f"{title:16} {numbers.trainable:10,}  {stored[title]:10,}  {deployed:10,}{said}")

# %% [markdown]
# No method made the deployed model smaller than the base. And look at two rows where stored is not trained:
#
# * **P-Tuning** trains a network that computes the prompt. To answer, only its result is needed, 20 vectors, so only
#   they are in this file. (The last column still counts the network.)
# * **VeRA** trains two small vectors for each matrix. Its file also holds the two frozen random matrices, so that it
#   can be loaded where the random numbers come out differently.
#
# ## Your experiment
#
# Make a **hybrid**: LoRA, and all biases as in BitFit. As the cell stands it takes 8 steps only, which may be too few
# to leave the floor. Ideas:
#
# * give it 768 tweets, as LoRA alone had above. Does it learn more?
# * train only the biases of the normalisations beside LoRA,
# * give the hybrid the learning rate of full fine-tuning, 3e-4,
# * train BitFit on all 2,191 tweets: `learn(inject(model, BitFitConfig()), 2e-2, texts=2191)`. When does it leave the
#   floor?
#
# One run with one seed proves nothing: a difference of two points can be chance.

# %% tags=["nbval-ignore-output"]
hybrid = inject(load_classifier("minilm")[0], LoRAConfig(rank=8, alpha=16))
for name, parameter in hybrid.named_parameters():
    if name.endswith("bias"):
        parameter.requires_grad_(True)
hybrid_numbers = count_parameters(hybrid)
experiment = learn(hybrid, learning_rate=8e-3, texts=256)
bars({"LoRA and all biases": experiment.evaluations[-1]["accuracy"]}, "validation accuracy after 8 steps", floor)

# %% [markdown]
# ## The same in `peft`
#
# LoRA and prompt tuning take two lines each, and one setting makes the hybrid. The counts are the same as ours. For
# BitFit we use plain PyTorch, which needs no library for it.

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import LoraConfig, PromptTuningConfig as PeftPromptTuningConfig, get_peft_model


def trained(model):
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


lora = {"task_type": "SEQ_CLS", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}
print("peft, LoRA:               ", f"{trained(get_peft_model(load_classifier('minilm')[0], LoraConfig(**lora))):,}")
both = get_peft_model(load_classifier("minilm")[0], LoraConfig(bias="all", **lora))
print("peft, LoRA and all biases:", f"{trained(both):,}", "as ours:", trained(both) == hybrid_numbers.trainable)
prompt = PeftPromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=20)
print("peft, prompt tuning:      ", f"{trained(get_peft_model(load_classifier('minilm')[0], prompt)):,}")

model, _ = load_classifier("minilm")
for name, parameter in model.named_parameters():
    parameter.requires_grad_(name.endswith("bias") or name.startswith("classifier."))
print("PyTorch, BitFit:          ", f"{trained(model):,}")

# %% [markdown]
# ## Take away
#
# * Ask what is trained, and whether it was there before: this is the family.
# * Weights, gradients and Adam's averages follow from three counts, to the byte. Activations follow from the batch.
# * Trained, stored and deployed are three sizes. PEFT makes the first two small, never the third.
