# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 14: Prefix tuning
#
# **You will**
#
# * write attention with a prefix, find the gate in it, and cut a table into the keys and values of one layer,
# * put a prefix into a real model, train it on real tweets, and see how much of the attention it takes,
# * see what is thrown away when you save, and get equal logits from `peft`.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *Prefix tuning* first.

# %%
# {{ install }}

# %%
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import DynamicCache, LlamaConfig, LlamaForSequenceClassification

from course_utils import (
    MethodError,
    PrefixTuningConfig,
    PTuningV2Config,
    TrainingConfig,
    check,
    check_invariants,
    count_parameters,
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
from course_utils.plots import bars, shares, training_curves

# %% [markdown]
# ## Exercise 1: attention with a prefix
#
# One head of attention computes $\text{softmax}(q K^\top / \sqrt d)\, V$. Prefix tuning puts $k$ trained rows before
# the keys, and $k$ trained rows before the values:
#
# $$\text{softmax}\!\left(\frac{q\,[P_K; K]^\top}{\sqrt d}\right)[P_V; V]$$


# %% tags=["exercise", "points:3"]
def prefix_attention(q, K, V, P_K, P_V):
    """Attention to the prefix and to the text, (queries, d).

    q (queries, d), K and V (tokens, d), P_K and P_V (k, d).
    """
    ### BEGIN SOLUTION
    # Hint: torch.cat puts rows under rows. Then it is attention as always: one softmax for each query, over all keys.
    keys, values = torch.cat((P_K, K)), torch.cat((P_V, V))
    scores = q @ keys.T / keys.shape[1] ** 0.5
    return scores.softmax(dim=1) @ values
    ### END SOLUTION


# %% tags=["check"]
check("prefix_tuning.attention", prefix_attention)

# %% [markdown]
# ## Exercise 2: the gate
#
# The weights of one query add up to 1. A part of this 1 falls on the prefix, the rest on the text. Return the part of
# the prefix for each query: the gate $\lambda$.


# %% tags=["exercise", "points:3"]
def gate(q, K, P_K):
    """The share of the attention that falls on the prefix, one number between 0 and 1 for each query, (queries,)."""
    ### BEGIN SOLUTION
    # Hint: compute the weights as in exercise 1, and add up the first k of each row.
    scores = q @ torch.cat((P_K, K)).T / K.shape[1] ** 0.5
    return scores.softmax(dim=1)[:, : len(P_K)].sum(dim=1)
    ### END SOLUTION


# %% tags=["check"]
check("prefix_tuning.gate", gate)

# %% [markdown]
# With this gate, attention with a prefix is a mix of two attentions, each of which knows nothing of the other:
#
# $$(1 - \lambda)\;\text{attention to the text} + \lambda\;\text{attention to the prefix}$$
#
# Here are both sides on random numbers, with PyTorch's own attention.

# %%
torch.manual_seed(0)
q, K, V, P_K, P_V = (torch.randn(1, rows, 16) for rows in (3, 7, 7, 4, 4))  # a batch of one
attend = torch.nn.functional.scaled_dot_product_attention
with_prefix = attend(q, torch.cat((P_K, K), dim=1), torch.cat((P_V, V), dim=1))
weights = (q @ torch.cat((P_K, K), dim=1).mT / 16**0.5).softmax(dim=-1)
opened = weights[..., :4].sum(dim=-1, keepdim=True)
mixed = (1 - opened) * attend(q, K, V) + opened * attend(q, P_K, P_V)
print("the gate of each query:", [round(share, 2) for share in opened.flatten().tolist()])
print("both sides are equal:", torch.allclose(with_prefix, mixed, atol=1e-5))

# %% [markdown]
# ## Exercise 3: from the table to a layer
#
# All keys and values stand in one table with a row for each virtual token. Its columns hold, one after the other: keys
# of layer 0, values of layer 0, keys of layer 1, values of layer 1, and so on. Each of these blocks is `width` columns
# wide, and within a block the heads follow one another. Cut out what one layer needs.


# %% tags=["exercise", "points:3"]
def keys_and_values(table, layer, layers, heads):
    """The keys and the values of a layer (counted from 0), each (heads, k, d); table (k, 2 · layers · heads · d)."""
    ### BEGIN SOLUTION
    # Hint: a row is one token. So view each block as (k, heads, d), and only then swap the first two dimensions.
    k = table.shape[0]
    blocks = table.chunk(2 * layers, dim=1)
    keys, values = blocks[2 * layer], blocks[2 * layer + 1]
    return keys.view(k, heads, -1).transpose(0, 1), values.view(k, heads, -1).transpose(0, 1)
    ### END SOLUTION


# %% tags=["check"]
check("prefix_tuning.split", keys_and_values)

# %% [markdown]
# ## Exercise 4: what does it cost?
#
# Count what is trained, without the head. There are two forms:
#
# * direct: the table itself is trained, $k$ rows of $2 \cdot \text{layers} \cdot \text{width}$ numbers,
# * with a network: $k$ rows of `width` numbers go through a linear layer to `mid_dim`, a tanh, and a linear layer to
#   the row of the table. Both linear layers have biases.


# %% tags=["exercise", "points:2"]
def prefix_parameters(k, layers, width, mid_dim=None):
    """Trained numbers of the direct table (mid_dim None), or of the network that computes it."""
    ### BEGIN SOLUTION
    # Hint: a linear layer from a to b has a · b weights and b biases. The network's input, k · width, is trained too.
    columns = 2 * layers * width
    if mid_dim is None:
        return k * columns
    return k * width + (width * mid_dim + mid_dim) + (mid_dim * columns + columns)
    ### END SOLUTION


# %% tags=["check"]
check("prefix_tuning.count", prefix_parameters)

# %% [markdown]
# ## A prefix in a real model
#
# MiniLM has 6 layers and 12 heads, and keys of 384 numbers. Ten virtual tokens are 10 · 2 · 6 · 384 = 46,080 numbers,
# and the head has 2 · 384 + 2 = 770.

# %%
config = PrefixTuningConfig(virtual_tokens=10)
model, tokenizer = load_classifier("minilm")
torch.manual_seed(0)  # the table is drawn at random
inject(model, config)
print(count_parameters(model))
keys, values = next(model.bert.keys_and_values(batch=8))
print("keys of layer 0:", tuple(keys.shape), "for 8 texts: (batch, heads, k, d)")

# %% [markdown]
# ### How does it get into the layers?
#
# A model that writes text keeps the keys and values of what it has read in a *cache*, so that it need not compute them
# again. Prefix tuning uses the same door: it hands over a cache in which ten tokens seem to have been read already.
# We do it by hand, with the plain model, and get the same logits. Note the mask: ten ones in front.

# %%
tweets = load_sentiment("tweets")
batch = next(iter(make_loader(tweets["train"].select(range(8)), tokenizer, 8)))
plain, _ = load_classifier("minilm")
table = model.bert.prefix.embedding.weight
blocks = [block.view(10, 12, 32).transpose(0, 1).expand(8, -1, -1, -1) for block in table.chunk(12, dim=1)]
cache = DynamicCache(list(zip(blocks[0::2], blocks[1::2], strict=True)))
mask = torch.cat((torch.ones(8, 10, dtype=torch.long), batch["attention_mask"]), dim=1)
with torch.no_grad():
    body = plain.eval().bert(batch["input_ids"], attention_mask=mask, past_key_values=cache)
    by_hand = plain.classifier(body.pooler_output)
    ours = model.eval()(**batch).logits
print("same logits:", torch.allclose(by_hand, ours, atol=1e-6))

# %% [markdown]
# The body returned one vector for each token of the *text*. The prefix has keys and values and nothing else: no query
# of its own, no output, no way through the feed-forward part.
#
# ### Does it keep its promises?
#
# One promise of LoRA it does not make: the answers change at once. So `identity=False`.

# %%
report = check_invariants(
    lambda: load_classifier("minilm")[0], config, batch, identity=False, expected_parameters=46_080 + 770
)
print(report)

# %% [markdown]
# ### Ten positions fewer
#
# The text begins at position 10. MiniLM has 512 positions, so a text may have 502 tokens.

# %%
too_long = torch.full((1, 503), tokenizer.cls_token_id)
try:
    model(too_long)
except MethodError as error:
    print(error)
print("502 tokens:", tuple(model(too_long[:, :502]).logits.shape))

# %% [markdown]
# ## Zeros are no “nothing”
#
# Could we begin with a prefix of zeros, so that nothing changes? A key of zeros has the score 0 with every query. But
# a score of 0 is not a weight of 0: $e^0 = 1$. We look at the gates. (PyTorch's fast attention does not return its
# weights, so we ask for the plain one, "eager".)


# %%
def share_of_prefix(model, batch):
    """The share of the attention that falls on the prefix, for each layer: mean over heads and real tokens."""
    k = model.bert.prefix.virtual_tokens
    model.eval().set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(
            **batch, output_attentions=True
        ).attentions  # for each layer (batch, heads, tokens, k + tokens)
    model.set_attn_implementation("sdpa")
    real = batch["attention_mask"].bool()
    return [layer[..., :k].sum(-1).mean(1)[real].mean().item() for layer in attentions]


zeros, _ = load_classifier("minilm")
inject(zeros, PrefixTuningConfig(virtual_tokens=10, init="zero"))
at_zero = share_of_prefix(zeros, batch)
print("share of a prefix of zeros, by layer:", [f"{share:.0%}" for share in at_zero])
with torch.no_grad():
    before, after = plain(**batch).logits, zeros(**batch).logits
print("the answers are as before:", torch.allclose(before, after, atol=1e-3))

# %% [markdown]
# Zeros have a second trap. All ten rows are the same, so they get the same gradient. If nothing else tells them apart,
# they stay the same for ever: one virtual token, counted ten times. (While BERT trains, its own dropout tells them
# apart. Llama has none.)

# %%
zeros(**batch).loss.backward()  # in evaluation mode, so without dropout
gradient = zeros.bert.prefix.embedding.weight.grad
print("all rows get the same gradient:", torch.allclose(gradient, gradient[:1].expand_as(gradient), atol=1e-7))
model(**batch).loss.backward()
gradient = model.bert.prefix.embedding.weight.grad
print("and with a random start:", torch.allclose(gradient, gradient[:1].expand_as(gradient), atol=1e-7))
model.zero_grad()

# %% [markdown]
# So we begin at random, as peft does, and let training clean up.
#
# ## Training
#
# The learning rate is 1e-1. That is more than ten times what lab 9 gives to LoRA: the numbers of the table are around
# 1, and 32 small steps would not move them. Weight decay is off. It pulls to zero, and zero is no place to rest.

# %% tags=["nbval-ignore-output"]
settings = TrainingConfig(learning_rate=1e-1, epochs=1, weight_decay=0.0)
judged = tweets["validation"].select(range(200))  # enough to see what happens, and the lab stays short
train = make_loader(tweets["train"].select(range(1024)), tokenizer, 32, shuffle=True)
validation = make_loader(judged, tokenizer, 64)
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))
start = model.bert.prefix.embedding.weight.detach().clone()
shares_at_start = share_of_prefix(model, batch)
history = fit(model, train, validation, settings)
training_curves({"prefix tuning, 10 tokens": history}, floor)

# %%
accuracy = history.evaluations[-1]["accuracy"]
assert accuracy > floor + 0.05, f"{accuracy:.1%} is too close to the floor of {floor:.1%}"
print("prefix tuning is above the floor after 32 steps")

# %% [markdown]
# Look at the curve of the loss, too. It begins with a time in which little happens: the random prefix has disturbed the
# model, and that must first be repaired.
#
# ## What has it learnt?
#
# First, how much of the attention does the prefix take, layer by layer?

# %% tags=["nbval-ignore-output"]
shares({"before training": shares_at_start, "after": share_of_prefix(model, batch), "a prefix of zeros": at_zero})

# %% [markdown]
# A large share does not mean that a layer is important, and a small one does not mean that it is not. So we ask in
# another way: put the *first*, random keys and values of one layer back, and leave the others as they were learnt. How
# much is lost? To save time we ask 100 tweets.

# %% tags=["nbval-ignore-output"]
weight = model.bert.prefix.embedding.weight
learnt = weight.detach().clone()
hundred = make_loader(judged.select(range(100)), tokenizer, 50)


def accuracy_of(model):
    """On a hundred validation tweets."""
    labels, logits = predict(model, hundred)
    return float((logits.argmax(-1) == labels).mean())


accuracies = {"all as learnt": accuracy_of(model)}
for layer in range(6):
    columns = slice(768 * layer, 768 * (layer + 1))  # keys and values of this layer
    with torch.no_grad():
        weight[:, columns] = start[:, columns]
        accuracies[f"layer {layer + 1} as it began"] = accuracy_of(model)
        weight.copy_(learnt)
bars(accuracies, "validation accuracy", floor)

# %%
assert (learnt - start).abs().mean() > 0.1, "the prefix has hardly moved: the learning rate is too low"
with torch.no_grad():
    logits = model.eval()(**batch).logits
    weight.copy_(start)
    with_start = model(**batch).logits
    weight.copy_(learnt)
assert (logits - with_start).abs().max() > 0.05
print("the learnt prefix changes the answers")

# %% [markdown]
# On 100 tweets a point is one tweet, so look for large drops only. Do not be surprised by the last layer: of all that
# it puts out, the head reads only the vector of [CLS].
#
# ## What is stored, and what is thrown away
#
# The table and the head: 46,850 numbers of four bytes.

# %%
folder = Path(tempfile.mkdtemp())
save(model, folder / "prefix")
file = folder / "prefix" / "adapter_model.safetensors"
assert 4 * 46_850 < file.stat().st_size < 4 * 46_850 + 2_000
print(f"the numbers alone: {4 * 46_850 / 1000:.0f} kB, whole model: {4 * count_parameters(model).total / 1000:,.0f} kB")
restored, _ = load_classifier("minilm")
load(restored, folder / "prefix")
with torch.no_grad():
    assert torch.equal(restored.eval()(**batch).logits, logits)
print("loaded into a fresh backbone, it gives the same logits bit for bit")

# %% [markdown]
# Now the form of the paper. A network computes the table while the prefix is trained. What is needed afterwards is its
# *result*, which is as large as the direct table. Our checkpoint puts the network into a second file, for those who
# want to go on training. We delete that file.

# %%
network, _ = load_classifier("minilm")
inject(network, PrefixTuningConfig(virtual_tokens=10, reparameterize=True))
print(count_parameters(network))
save(network, folder / "network")
stored = load_file(folder / "network" / "adapter_model.safetensors")["prompt_embeddings"]
print("stored table:", tuple(stored.shape), f"= {stored.numel():,} numbers")
(folder / "network" / "prompt_encoder.safetensors").unlink()
restored, _ = load_classifier("minilm")
load(restored, folder / "network")
with torch.no_grad():
    same = torch.allclose(restored.eval()(**batch).logits, network.eval()(**batch).logits, atol=1e-5)
print("without the network, same logits:", same)

# %% [markdown]
# For a small model that is a curious detail. For a large one it is not: the network's second matrix grows with width ×
# layers × width. We count on a Llama with 7 billion weights. On the device `meta` a model has shapes and no numbers, so
# nothing is loaded.


# %%
def trained_on_llama(**settings):
    """What prefix tuning with 20 virtual tokens trains in Llama 2 7B, head not counted."""
    with torch.device("meta"):
        llama = LlamaForSequenceClassification(LlamaConfig(num_labels=2))  # the defaults are Llama 7B's
        counted = count_parameters(inject(llama, PrefixTuningConfig(virtual_tokens=20, **settings)))
    return counted.trainable - counted.head


direct, small = trained_on_llama(), trained_on_llama(reparameterize=True, mid_dim=512)
full = trained_on_llama(reparameterize=True)
columns = 2 * 32 * 4096
print(f"direct table: {direct:,} = 20 · {columns:,}")
print(f"network of mid_dim 512: {small:,}")
print(f"network as in peft's default: {full:,}")
print(f"its two matrices: {4096 * 4096:,} + {4096 * columns:,} = {4096 * 4096 + 4096 * columns:,}")

# %% [markdown]
# More than a billion trained weights, to store five million. With Adam, gradients and moments come on top of each of
# them.
#
# ## Your experiment: P-Tuning v2
#
# `PTuningV2Config` is the same prefix for classifiers: the direct table, and dropout on the keys and values. Run it,
# and then change something. Ideas:
#
# * `dropout=0.0`, or 0.5,
# * 1 virtual token, or 40,
# * the rate of full fine-tuning, 3e-4: does anything move?
# * `PrefixTuningConfig(virtual_tokens=10, init="zero")`.

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")
torch.manual_seed(0)
inject(model, PTuningV2Config(virtual_tokens=10, dropout=0.1))
print(count_parameters(model))
few = make_loader(tweets["train"].select(range(512)), tokenizer, 32, shuffle=True)
experiment = fit(model, few, validation, settings)
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")

# %% [markdown]
# ## The same in `peft`
#
# Our checkpoint is a checkpoint of peft: it loads there, and the logits are the same. A new prefix takes three lines;
# with our table in it, it computes the same, too. There is no class for P-Tuning v2 in peft: it is
# `PrefixTuningConfig` with a task type.

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import PeftModel, PrefixTuningConfig as PeftPrefixTuningConfig, get_peft_model

loaded = PeftModel.from_pretrained(load_classifier("minilm")[0], folder / "prefix").eval()
with torch.no_grad():
    print("same logits in peft:", torch.equal(loaded(**batch).logits, logits))

theirs, _ = load_classifier("minilm")
theirs = get_peft_model(theirs, PeftPrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=10)).eval()
print("same count in peft:", f"{sum(p.numel() for p in theirs.parameters() if p.requires_grad):,}")
ours, _ = load_classifier("minilm")
inject(ours, config).eval()
with torch.no_grad():
    ours.bert.prefix.embedding.weight.copy_(theirs.prompt_encoder["default"].embedding.weight)
    print("same logits from the same table:", torch.equal(ours(**batch).logits, theirs(**batch).logits))

# %% [markdown]
# ## Take away
#
# * Prefix tuning gives every attention layer $k$ trained keys and values. The input text stays as it is.
# * Attention with a prefix is a mix of two attentions. The gate is never quite closed, so no start is “no change”.
# * The paper's network is dropped when you save. On a large model it is far larger than what is stored.
# * P-Tuning v2 is the same idea for classifiers. It is no extension of P-Tuning.
