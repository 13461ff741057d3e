# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 7: BitFit
#
# **You will**
#
# * choose the parameters that BitFit trains by their names, count them by a formula, and write a bias's gradient,
# * put BitFit into a real model, train it on real tweets, and see which biases moved, and which of them matter,
# * compare it with training the last layer: what is trained, and what must wait for the backward pass,
# * see what happens on a Llama, which has no biases, and do the same as BitFit in plain PyTorch.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *BitFit* first.

# %%
# {{ install }}

# %%
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from course_utils import (
    BitFitConfig,
    FullConfig,
    LastLayersConfig,
    MethodError,
    TrainingConfig,
    check,
    check_invariants,
    count_parameters,
    eject,
    fit,
    inject,
    load,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
    predict,
    save,
)
from course_utils.plots import bars, biases_moved, training_curves
from course_utils.training import saved_for_backward

# %% [markdown]
# ## Exercise 1: by name
#
# A model of transformers names each of its parameters. Here are those of one block of MiniLM, those around the blocks,
# and the head's.

# %%
model, tokenizer = load_classifier("minilm")
names = [name for name, _ in model.named_parameters()]
for name in names:
    if ".layer." not in name or ".layer.0." in name:
        print(name)

# %% [markdown]
# Write a function that returns the names of what BitFit trains: every bias, and the whole head. `head` is the name of
# the head's module, here "classifier". Take care: some models have a *matrix* with the word "bias" in its name.


# %% tags=["exercise", "points:2"]
def bitfit_names(names, head):
    """Those of the dotted names that BitFit trains; the head's names begin with `head` and a dot."""
    ### BEGIN SOLUTION
    # Hint: name.endswith(...) looks at the last part, name.startswith(...) at the first.
    return [name for name in names if name.endswith(".bias") or name.startswith(head + ".")]
    ### END SOLUTION


# %% tags=["check"]
check("bitfit.names", bitfit_names)

# %% [markdown]
# ## Exercise 2: the gradient of a bias
#
# The same bias is added to a layer's output at each token of each text. Backpropagation hands you the gradient of the
# loss with respect to that output, `g`, of the shape (texts, tokens, outputs). What is the gradient of the bias?


# %% tags=["exercise", "points:2"]
def bias_gradient(g):
    """The gradient of the bias, one number an output; g (texts, tokens, outputs)."""
    ### BEGIN SOLUTION
    # Hint: what is used several times gets the sum of the gradients of its uses.
    return g.sum(dim=(0, 1))
    ### END SOLUTION


# %% tags=["check"]
check("bitfit.gradient", bias_gradient)

# %% [markdown]
# ## Exercise 3: how many biases?
#
# Count all biases of a model like BERT, the head's bias with them, but not the head's weight. It has
#
# * a layer normalisation after the embeddings, of the width of the model,
# * `blocks` blocks, each with query, key, value, the layer behind them, a feed-forward part (first from `width` to
#   `inner`, then back), and two layer normalisations,
# * a pooler, a linear layer from `width` to `width`,
# * a head, from `width` to `labels`.


# %% tags=["exercise", "points:3"]
def bitfit_parameters(width, inner, blocks, labels):
    """The number of biases in a model like BERT."""
    ### BEGIN SOLUTION
    # Hint: a layer has as many biases as outputs. A normalisation has one bias vector, too.
    block = 4 * width + inner + width + 2 * width
    return width + blocks * block + width + labels
    ### END SOLUTION


# %% tags=["check"]
check("bitfit.count", bitfit_parameters)

# %% [markdown]
# ## Exercise 4: two biases
#
# The paper's small variant trains two biases in each block: the query's, and the one in the *middle* of the
# feed-forward part, where the vector is long. Which are these in the list above? (The head is not asked for here.)


# %% tags=["exercise", "points:2"]
def two_biases(names):
    """Those of the dotted names that the variant with two biases trains, the head left out."""
    ### BEGIN SOLUTION
    # Hint: name.endswith takes a tuple of endings, too.
    return [name for name in names if name.endswith((".query.bias", ".intermediate.dense.bias"))]
    ### END SOLUTION


# %% tags=["check"]
check("bitfit.two", two_biases)

# %% [markdown]
# ## BitFit in a real model
#
# By the formula MiniLM has 6 · (7 · 384 + 1,536) + 2 · 384 + 2 = 26,114 biases, two of them in the head. The head's
# weight has 768 numbers more. Beside it we count training the last layers, and the variant with two biases.

# %%
config = BitFitConfig()
inject(model, config)
print(count_parameters(model))
for layers in (1, 2):
    print(f"last {layers}:", count_parameters(inject(load_classifier("minilm")[0], LastLayersConfig(layers=layers))))
print("two biases:", count_parameters(inject(load_classifier("minilm")[0], BitFitConfig(biases="two"))))

# %% [markdown]
# Does it keep its promises? `check_invariants` builds the model afresh and tries each one.

# %%
tweets = load_sentiment("tweets")
batch = next(iter(make_loader(tweets["train"].select(range(8)), tokenizer, 8)))
print(check_invariants(lambda: load_classifier("minilm")[0], config, batch, expected_parameters=26_114 + 768))

# %% [markdown]
# ## A bias without a gradient
#
# One backward pass, in double precision so that rounding is small. How long is the gradient of each bias of the first
# block?

# %% tags=["nbval-ignore-output"]
probe, _ = load_classifier("minilm")
inject(probe.double().eval(), config)
probe(**batch).loss.backward()
first = "bert.encoder.layer.0."
lengths = {
    name.removeprefix(first): parameter.grad.norm().item()
    for name, parameter in probe.named_parameters()
    if name.startswith(first) and parameter.grad is not None
}
for name, length in lengths.items():
    print(f"{name:35} {length:.1e}")

# %%
key = "attention.self.key.bias"
assert lengths[key] < 1e-10 and min(length for name, length in lengths.items() if name != key) > 1e-6
print("the key's bias has no gradient, all other biases have one")

# %% [markdown]
# The key's bias adds the same number to all scores of a query, and softmax does not see that. We can also put
# *anything* there:

# %%
with torch.no_grad():
    before = probe(**batch).logits
    for block in probe.bert.encoder.layer:
        block.attention.self.key.bias.normal_(generator=torch.Generator().manual_seed(0))
    print("random biases at all keys, same answers:", torch.allclose(probe(**batch).logits, before, atol=1e-9))
    for block in probe.bert.encoder.layer:
        block.attention.self.query.bias.normal_(generator=torch.Generator().manual_seed(0))
    print("random biases at all queries, same answers:", torch.allclose(probe(**batch).logits, before, atol=1e-3))

# %% [markdown]
# ## Training
#
# BitFit takes the learning rate 1e-2, some thirty times the 3e-4 that lab 1 gives to full fine-tuning. Beside it we
# train the last layer, where whole matrices move, with 1e-3. Both take 32 steps of 32 tweets. We choose the shortest
# tweets, so that the steps are quick.

# %% tags=["nbval-ignore-output"]
judged = tweets["validation"].select(range(200))  # enough to see what happens, and the lab stays short
by_length = np.argsort([len(text) for text in tweets["train"]["text"]], kind="stable")
train = make_loader(tweets["train"].select(by_length[:1024]), tokenizer, 32, shuffle=True)
validation = make_loader(judged, tokenizer, 64)
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))
pretrained = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
history = fit(model, train, validation, TrainingConfig(learning_rate=1e-2, epochs=1))
last, _ = load_classifier("minilm")
inject(last, LastLayersConfig(layers=1))
last_history = fit(last, train, validation, TrainingConfig(learning_rate=1e-3, epochs=1))
accuracy, last_accuracy = (run.evaluations[-1]["accuracy"] for run in (history, last_history))
print(f"after 32 steps: BitFit {accuracy:.1%}, last layer {last_accuracy:.1%}, always the majority {floor:.1%}")
training_curves({"BitFit": history, "last layer": last_history}, floor)

# %%
for reached in (accuracy, last_accuracy):
    assert reached > floor + 0.12, f"{reached:.1%} is too close to the floor of {floor:.1%}"
print("both are far above the floor after 32 steps")

# %% [markdown]
# ## Which biases moved most?
#
# We kept a copy of the biases. How far is each from where it started, on average, kind by kind and layer by layer?

# %% tags=["nbval-ignore-output"]
KINDS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "behind the heads (m1)": "attention.output.dense",
    "inner layer (m2)": "intermediate.dense",
    "outer layer (m3)": "output.dense",
    "normalisation 1": "attention.output.LayerNorm",
    "normalisation 2": "output.LayerNorm",
}
layers = range(len(model.bert.encoder.layer))


def biases_of(kind):
    """The names of the biases of one kind, from the first layer to the last."""
    return [f"bert.encoder.layer.{layer}.{KINDS[kind]}.bias" for layer in layers]


distances = {
    kind: [(model.get_parameter(name) - pretrained[name]).abs().mean().item() for name in biases_of(kind)]
    for kind in KINDS
}
biases_moved(distances)

# %% [markdown]
# The key's biases have hardly moved: their gradient is rounding noise. In the paper, the query's bias and the inner one
# (m2) moved most. Do you see it here?
#
# Be careful with what you conclude. Adam moves every number by about the learning rate in each step, whether its
# gradient is large or small, so most kinds have moved about equally far. So ask another question: how much do the
# logits change when we put the biases of one kind back where they started?


# %% tags=["nbval-ignore-output"]
some = make_loader(judged.select(range(64)), tokenizer, 64)
_, some_logits = predict(model, some)


def change_without(kind):
    """How far the logits move, as a share of their size, with all biases of one kind as pretrained."""
    learnt = {name: model.get_parameter(name).detach().clone() for name in biases_of(kind)}
    with torch.no_grad():
        for name in learnt:
            model.get_parameter(name).copy_(pretrained[name])
        _, logits = predict(model, some)
        for name, value in learnt.items():  # and now as they were
            model.get_parameter(name).copy_(value)
    return float(np.linalg.norm(logits - some_logits) / np.linalg.norm(some_logits))


changes = {f"{kind} back": change_without(kind) for kind in KINDS}
bars(changes, "change of the logits, as a share of their size")

# %%
assert max(distances["key"]) < 0.2 * min(distances["query"])
assert changes["key back"] < 1e-3
assert min(change for kind, change in changes.items() if kind != "key back") > 1e-2
print("putting the keys' biases back changes nothing, and each other kind matters")

# %% [markdown]
# Compare the two pictures, and look at the query above all. Is the order of the bars the order of the distances?
# Distance is not importance. And kinds work together: what the one has learnt may be of no use without the other, so
# the bars do not add up to a whole.
#
# ## What must wait for the backward pass
#
# BitFit trains few numbers, the last layer many. Which of them needs less memory for activations? PyTorch tells us
# about each tensor that it keeps for the backward pass.


# %% tags=["nbval-ignore-output"]
def kept_for_backward(config):
    """Bytes that the forward pass keeps for the backward pass, the model's own weights left out."""
    model, _ = load_classifier("minilm")
    return saved_for_backward(inject(model, config), batch)


kept = {c.name: kept_for_backward(c) for c in (FullConfig(), BitFitConfig(), LastLayersConfig(layers=1))}
for name, size in kept.items():
    print(f"{name:17} {size / 1e6:5.1f} MB for 8 tweets")

# %%
full, bitfit, top = kept.values()
assert 0.3 < bitfit / full < 0.95
assert top < 0.5 * bitfit
print("BitFit keeps less than full fine-tuning, and the last layer less than half of what BitFit keeps")

# %% [markdown]
# A bias needs no input of its layer, so some of the inputs are not kept. But the gradient has to reach the lowest bias,
# in the embeddings. For the last layer it stops five blocks earlier.
#
# ## What is stored
#
# 26,882 numbers of four bytes are 108 kB; a header with the names comes on top. And there is no way back from the
# trained model to the pretrained one: the biases themselves have changed.

# %%
folder = Path(tempfile.mkdtemp())
save(model, folder)
file = folder / "tuning_model.safetensors"
assert 4 * 26_882 < file.stat().st_size < 4 * 26_882 + 12_000
print(f"the numbers alone: {4 * 26_882 / 1000:.0f} kB, whole model: {4 * count_parameters(model).total / 1000:,.0f} kB")
restored, _ = load_classifier("minilm")
load(restored, folder)
_, restored_logits = predict(restored, validation)
_, logits = predict(model, validation)
assert np.array_equal(restored_logits, logits)
print("loaded into a fresh backbone, it gives the same logits bit for bit")
try:
    eject(model)
except MethodError as refusal:
    print("eject:", refusal)

# %% [markdown]
# ## A model without biases
#
# A tiny Llama with random weights. It is built as the large ones are.

# %%
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
llama = LlamaForSequenceClassification(LlamaConfig(vocab_size=100, num_key_value_heads=2, pad_token_id=0, **shape))
print("kinds of parameters:", sorted({name.rsplit(".", 1)[-1] for name, _ in llama.named_parameters()}))
print("biases:", [name for name, _ in llama.named_parameters() if name.endswith(".bias")])
print("head:  ", [name for name, _ in llama.named_parameters() if name.startswith("score.")])
try:
    inject(llama, config)
except MethodError as refusal:
    print("MethodError:", refusal)

# %% [markdown]
# A loop over the names would have trained the head alone, without a word. And here is the code that a common tutorial
# calls BitFit on Llama 2. What does it train?

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import LoraConfig, get_peft_model

called_bitfit = LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], bias="none")
peft_model = get_peft_model(llama, called_bitfit)
trained = [name for name, parameter in peft_model.named_parameters() if parameter.requires_grad]
print("trained:", sorted({name.split(".")[-3] for name in trained}))
print("biases among them:", sum(name.endswith(".bias") for name in trained))

# %% [markdown]
# It is LoRA, and `bias="none"` freezes all biases, where there are any.
#
# ## Your experiment
#
# Change the choice or the learning rate, and run the cell again. Ideas:
#
# * the two biases, as below, against all of them, `BitFitConfig()`, at the same rate of 4e-2. Which choice bears it?
# * the learning rate of full fine-tuning, 3e-4. How far can a bias get in a few steps?
# * `LastLayersConfig(layers=2)` with the rate 1e-3,
# * `HeadOnlyConfig()` with the rate 0.1: what do the biases add to the head?

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")
inject(model, BitFitConfig(biases="two"))
few = make_loader(tweets["train"].select(by_length[:768]), tokenizer, 32, shuffle=True)
experiment = fit(model, few, validation, TrainingConfig(learning_rate=4e-2, epochs=1))
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")

# %% [markdown]
# ## The same in plain PyTorch
#
# peft has no BitFit. Nothing but `requires_grad` is needed, and then an ordinary training loop. We take three steps
# with each of the two and compare every number of the model.


# %%
def three_steps(model):
    """Three steps of AdamW on the eight tweets, on what is trainable; without dropout, so that nothing is random."""
    model.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return dict(model.named_parameters())


plain, _ = load_classifier("minilm")
for name, parameter in plain.named_parameters():
    parameter.requires_grad = name.endswith(".bias") or name.startswith("classifier.")
print(f"plain PyTorch trains {sum(p.numel() for p in plain.parameters() if p.requires_grad):,} numbers")

ours, _ = load_classifier("minilm")
inject(ours, config)
print(f"ours trains          {count_parameters(ours).trainable:,}")

mine, theirs = three_steps(ours), three_steps(plain)
print("equal after three steps:", all(torch.equal(mine[name], theirs[name]) for name in mine))
changed = [name for name in mine if not torch.equal(mine[name], pretrained[name])]
print("changed:", sorted({name.rsplit(".", 1)[-1] for name in changed if "classifier" not in name}), "and the head")

# %% [markdown]
# ## Take away
#
# * BitFit trains every bias and the head. It adds nothing, and the model keeps its size and speed.
# * Choose by the last part of the name, and count: 26,114 biases in MiniLM, 102,914 in BERT-base, none in a Llama.
# * The key's bias can do nothing, and its gradient is zero. For the other kinds distance is not importance.
# * Training the last layer stores more numbers and keeps fewer activations.
