# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 16: PEFT on a Llama model
#
# **You will**
#
# * look at a chat template, and build rows of which only the answer is learnt,
# * compute the loss of a language model by hand, shift included, and pad a batch on the left,
# * count LoRA's parameters where heads share their keys and values,
# * train LoRA on a real Llama model until it answers in the form that you asked for, and load it in `peft`.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed; with one, the
# same cells use it. Read the chapter *PEFT on a Llama model* first.

# %%
# {{ install }}

# %%
import tempfile
from pathlib import Path

import torch

from course_utils import (
    ChatTraining,
    IA3Config,
    LoRAConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    check,
    count_parameters,
    eject,
    fastest_dtype,
    inject,
    load_causal_lm,
    load_sentiment,
    save,
    train_on_chats,
    write_answers,
)
from course_utils.data import answer, question, read_answer
from course_utils.models import encode_chat, encode_prompt, pad_left
from course_utils.plots import loss_curve

# %% [markdown]
# ## The model
#
# One argument says which one. `"smollm2"` comes with the course: the Llama architecture in small. With a GPU and access
# to the model hub, write the name of another model here, such as `"meta-llama/Llama-3.2-1B-Instruct"`, or a folder.
#
# `fastest_dtype` says in which type: bfloat16 on a GPU, and on a processor that has instructions for it. Most laptops
# have not; they emulate it, and a step then takes many times as long as in float32. So it is measured once.

# %%
MODEL = "smollm2"
model, tokenizer = load_causal_lm(MODEL, dtype=fastest_dtype())
device = "cuda" if torch.cuda.is_available() else "cpu"
model.to(device)
config = model.config
print(f"{config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}")
print(f"{config.num_attention_heads} heads of queries, {config.num_key_value_heads} heads of keys and of values")
print(model.model.layers[0].self_attn)
print("biases in the whole model:", sum(name.endswith("bias") for name, _ in model.named_parameters()))

# %% [markdown]
# No biases at all: BitFit (chapter 7) would have nothing to train here.
#
# ## The chat template
#
# The task: say whether a tweet is positive or negative, and how strongly, from 1 to 4. The answer is *written*:
# `negative 2`. Here is the whole text that the model sees.

# %%
tweets = load_sentiment("tweets")
first = tweets["train"][0]
conversation = question(first["text"])
prompt = encode_prompt(tokenizer, conversation)
print(tokenizer.decode(prompt) + answer(first["rating"]))
print(f"{len(prompt)} tokens before the answer")
print(
    "end of sequence:",
    tokenizer.eos_token_id,
    " padding:",
    tokenizer.pad_token_id,
    " pad on the",
    tokenizer.padding_side,
)

# %% [markdown]
# Two things to keep in mind. The token that ends an answer, `<|im_end|>`, also ends each message *before* it. And it is
# the padding token, too.
#
# ## Exercise 1: what is learnt
#
# Write the row for one example: the prompt, the answer, and the end token. The labels have the same length; where
# nothing is to be learnt stands -100.


# %% tags=["exercise", "points:2"]
def build_row(prompt, answer, eos):
    """Lists of token ids and the id of the end token → input_ids, labels."""
    ### BEGIN SOLUTION
    # Hint: lists can be added, and [-100] * 3 is [-100, -100, -100]. Does the end token belong to what is learnt?
    learnt = [*answer, eos]
    return prompt + learnt, [-100] * len(prompt) + learnt
    ### END SOLUTION


# %% tags=["check"]
check("llama.labels", build_row)

# %% [markdown]
# ## Exercise 2: the loss, with its shift
#
# The logits of position $t$ are a guess for token $t + 1$. So the label of token $t$ meets the logits of position
# $t - 1$. The loss is the mean of $-\log p$ over the labels that are not -100.


# %% tags=["exercise", "points:3"]
def answer_loss(logits, labels):
    """Loss of one row; logits (tokens, words), labels (tokens)."""
    ### BEGIN SOLUTION
    # Hint: the last logits have no label, the first label has no logits. cross_entropy leaves -100 out.
    return torch.nn.functional.cross_entropy(logits[:-1], labels[1:])
    ### END SOLUTION


# %% tags=["check"]
check("llama.loss", answer_loss)

# %% [markdown]
# transformers does the same when it is given labels. So never shift them yourself: twice is once too often.

# %%
row = encode_chat(tokenizer, conversation, answer(first["rating"]))
batch = {name: value.to(device) for name, value in pad_left([row], tokenizer.pad_token_id).items()}
with torch.no_grad():
    output = model.eval()(**batch)
by_hand = torch.nn.functional.cross_entropy(output.logits[0, :-1].float(), batch["labels"][0, 1:])
assert torch.allclose(output.loss.float(), by_hand, rtol=1e-3)
print("the model's own loss is the one computed by hand")
print(sum(label != -100 for label in row["labels"]), "of", len(row["labels"]), "tokens count")

# %% [markdown]
# ## Before training
#
# Greedy means: always the most probable token. So the answers are the same in each run.

# %% tags=["nbval-ignore-output"]
shown = tweets["validation"].select(range(16))
right = [answer(rating) for rating in shown["rating"]]
before = write_answers(model, tokenizer, [question(text) for text in shown["text"]])
for text, truth, written in list(zip(shown["text"], right, before, strict=True))[:5]:
    print(f"{text[:60]!r}\n    right: {truth}    written: {written!r}")

# %%
readable_before = sum(read_answer(written) is not None for written in before)
assert readable_before < 8
print("most answers do not keep the form")

# %% [markdown]
# ## Exercise 3: padding on the left
#
# Rows of different lengths must become one rectangle. Fill the free places on the **left**: `input_ids` with `pad_id`,
# the attention mask with 0, the labels with -100. The padding may have the same id as real tokens.


# %% tags=["exercise", "points:3"]
def pad_batch(ids, labels, pad_id):
    """Two lists of rows (lists of numbers) → input_ids, attention_mask, labels, each a tensor (rows, longest)."""
    ### BEGIN SOLUTION
    # Hint: how many places are free in each row? Make the mask from that number, not from the ids.
    longest = max(len(row) for row in ids)
    free = [longest - len(row) for row in ids]
    return (
        torch.tensor([[pad_id] * n + row for n, row in zip(free, ids, strict=False)]),
        torch.tensor([[0] * n + [1] * (longest - n) for n in free]),
        torch.tensor([[-100] * n + row for n, row in zip(free, labels, strict=False)]),
    )
    ### END SOLUTION


# %% tags=["check"]
check("llama.padding", pad_batch)

# %% [markdown]
# What does the side matter? `generate` writes behind the last place of each row. We take a short and a long tweet
# together, on either side, and compare the first token with the one that the short tweet gets alone.

# %%
texts = sorted(shown["text"], key=len)
short, long = (encode_prompt(tokenizer, question(text)) for text in (texts[0], texts[-1]))


@torch.no_grad()
def next_token(ids, mask):
    """The most probable token behind the last place of the first row."""
    # Positions count real tokens only, as `generate` does it.
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), position_ids=positions.to(device)).logits
    return tokenizer.decode(logits[0, -1].argmax())


free = len(long) - len(short)
pad, ones = [tokenizer.pad_token_id] * free, [1] * len(short)
alone = next_token(torch.tensor([short]), torch.tensor([ones]))
left = next_token(torch.tensor([pad + short, long]), torch.tensor([[0] * free + ones, [1] * len(long)]))
on_the_right = next_token(torch.tensor([short + pad, long]), torch.tensor([ones + [0] * free, [1] * len(long)]))
print("padding on the left, the same token as alone: ", left == alone)
print("padding on the right, the same token as alone:", on_the_right == alone)

# %% [markdown]
# ## Exercise 4: count
#
# LoRA on query and value, rank $r$. A head has $\text{width} / \text{heads}$ numbers. There are as many heads of
# queries as `heads` says, but only `shared_heads` of keys and of values: several queries share one. So `q_proj` has
# the shape (width, width), and `v_proj` is narrower.


# %% tags=["exercise", "points:2"]
def lora_parameters(width, heads, shared_heads, layers, rank):
    """Trained numbers of LoRA on q_proj and v_proj of all layers."""
    ### BEGIN SOLUTION
    # Hint: rank * (in + out) for each matrix. How many numbers do all values of a token have together?
    values = width // heads * shared_heads
    return layers * rank * ((width + width) + (width + values))
    ### END SOLUTION


# %% tags=["check"]
check("llama.count", lora_parameters)

# %% [markdown]
# And here is what each method trains in this model. `eject` takes a method out again, so one model serves for all.

# %%
methods = {
    "LoRA, query and value": LoRAConfig(rank=8, alpha=16),
    "(IA)³": IA3Config(),
    "prompt tuning": PromptTuningConfig(virtual_tokens=20),
    "prefix tuning": PrefixTuningConfig(virtual_tokens=20),
}
for title, method in methods.items():
    inject(model, method)
    print(f"{title:22} {count_parameters(model).trainable:>9,}")
    eject(model)

# %% [markdown]
# ## Training
#
# LoRA, 12 steps of 4 tweets, few enough for a laptop. `train_on_chats` calls the `Trainer` of transformers; look into
# it, it is short.

# %% tags=["nbval-ignore-output"]
inject(model, methods["LoRA, query and value"])
part = tweets["train"].select(range(512))
rows = [encode_chat(tokenizer, question(t), answer(r)) for t, r in zip(part["text"], part["rating"], strict=True)]
losses = train_on_chats(model, tokenizer, rows, ChatTraining(learning_rate=3e-3, steps=12, batch_size=4))
loss_curve({"LoRA": losses})

# %% tags=["nbval-ignore-output"]
after = write_answers(model, tokenizer, [question(text) for text in shown["text"]])
for text, truth, written in list(zip(shown["text"], right, after, strict=True))[:8]:
    print(f"{text[:60]!r}\n    right: {truth}    written: {written!r}")

# %%
readable = sum(read_answer(written) is not None for written in after)
assert losses[-1] < 0.6 * losses[0] and readable >= 12, (losses, after)
print("the loss has fallen, and nearly all answers keep the form")

# %% [markdown]
# So few steps teach the *form* first: two words in the right order, and then the end. Whether the sentiment is right
# takes more of them; the chapter shows it.
#
# ## What if the question is not masked?
#
# Then the model also learns to write tweets and template. Which share of the loss belongs to the answer?

# %%
learnt = sum(label != -100 for row in rows for label in row["labels"])
tokens = sum(len(row["labels"]) for row in rows)
print(f"{learnt:,} of {tokens:,} tokens are the answer: {learnt / tokens:.0%}")

# %% [markdown]
# ## Exercise 5: read the answer
#
# `generate` returns the prompt and what was written, one list of ids a row. In a batch, the shorter answers are filled
# up with end tokens; an answer that hit the limit has none. Return the text of the answer.


# %% tags=["exercise", "points:2"]
def read_output(output, prompt_length, eos, decode):
    """The answer in a list of ids; decode makes a text from a list of ids."""
    ### BEGIN SOLUTION
    # Hint: cut the prompt off first. It holds end tokens of its own.
    written = output[prompt_length:]
    if eos in written:
        written = written[: written.index(eos)]
    return decode(written)
    ### END SOLUTION


# %% tags=["check"]
check("llama.read", read_output)

# %% [markdown]
# ## Your experiment
#
# Change one thing, and run the cell again. Ideas:
#
# * another method: `PrefixTuningConfig()` at 1e-2, or `PromptTuningConfig()`,
# * more steps,
# * `mask_prompt=False` in `encode_chat`: what does the model write then?
# * `QLoRAConfig()`; it changes the weights, so load the model afresh before and after.

# %% tags=["nbval-ignore-output"]
folder = Path(tempfile.mkdtemp())
save(model, folder / "adapter")  # what LoRA has learnt, for the last part
with torch.no_grad():
    trained_logits = model.eval()(**batch).logits
eject(model)
inject(model, PrefixTuningConfig(virtual_tokens=20))
experiment = train_on_chats(model, tokenizer, rows, ChatTraining(learning_rate=1e-2, steps=3, batch_size=4))
print("loss of each step:", [round(loss, 2) for loss in experiment])

# %% [markdown]
# ## The same in `peft`
#
# Our checkpoint is a checkpoint of peft. It loads there, and the logits are the same. For a new adapter,
# `get_peft_model` is the way; `PeftModel.from_pretrained` *loads* one.

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig as PeftPrefixTuningConfig,
    PromptTuningConfig as PeftPromptTuningConfig,
    TaskType,
    get_peft_model,
)

eject(model)
loaded = PeftModel.from_pretrained(model, folder / "adapter").eval()
with torch.no_grad():
    peft_logits = loaded(**batch).logits
print("same logits in peft:", torch.equal(peft_logits, trained_logits))
model = loaded.unload()

# %%
in_peft = {
    "LoRA, query and value": LoraConfig(task_type=TaskType.CAUSAL_LM, r=8, lora_alpha=16),
    "prompt tuning": PeftPromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=20),
    "prefix tuning": PeftPrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=20),
}
for title, peft_config in in_peft.items():
    adapted = get_peft_model(model, peft_config)
    print(f"{title:22} {sum(p.numel() for p in adapted.parameters() if p.requires_grad):>9,}")
    if title.startswith("LoRA"):
        model = adapted.unload()

# %% [markdown]
# ## What you have learnt
#
# * Only the answer and its end are learnt; -100 hides the rest. The model shifts the labels, you do not.
# * Pad on the left, and make masks by position: the padding token is often the end token.
# * Cut the prompt off before you look for the end of an answer.
# * LoRA, prompt tuning and prefix tuning work on a Llama model with the same calls as on BERT. BitFit does not.
