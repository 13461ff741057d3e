# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 2: Parameters, losses and optimisers
#
# **You will**
#
# * count the parameters of a model by a formula, and check it against the model,
# * write cross-entropy and its gradient so that they never overflow,
# * write momentum and AdamW, and see that they take the same steps as `torch.optim`,
# * find a learning rate that is too small, one that is right, and one that is too large.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *Parameters, losses and optimisers* first.

# %%
# {{ install }}

# %%
import torch

from course_utils import check, load_classifier, load_sentiment, majority_accuracy, make_loader
from course_utils.models import count_by_kind
from course_utils.plots import paths_on_a_bowl
from course_utils.training import (
    SGD,
    Adam,
    AdamW,
    cross_entropy,
    cross_entropy_gradient,
    descend,
    judge,
    sentence_vectors,
    train_linear,
)

# %% [markdown]
# ## Exercise 1: count a layer
#
# A layer of BERT with width $h$ and inner width $f$ holds
#
# * four matrices of attention (query, key, value, output), each $h \times h$ with a bias,
# * two matrices of the feed-forward part, from $h$ to $f$ and back to $h$, each with a bias,
# * two normalisations, each with $h$ gains and $h$ shifts.
#
# A bias has one number for each **output**. Write the formula.


# %% tags=["exercise", "points:2"]
def layer_parameters(h, f):
    """Trainable numbers in one layer of BERT of width h and inner width f."""
    ### BEGIN SOLUTION
    # Hint: add up the three lines of the text above, one variable for each.
    attention = 4 * (h * h + h)
    feed_forward = (h * f + f) + (f * h + h)
    normalisations = 2 * (h + h)
    return attention + feed_forward + normalisations
    ### END SOLUTION


# %% tags=["check"]
check("optimizers.count", layer_parameters)

# %% [markdown]
# Here is the whole model, counted by kind. MiniLM has 6 layers with $h = 384$ and $f = 1536$. Half of its numbers are
# the table of token embeddings.

# %%
model, tokenizer = load_classifier("minilm")
for kind, count in count_by_kind(model).items():
    print(f"{kind:36} {count:>12,}")
layer = sum(parameter.numel() for parameter in model.bert.encoder.layer[0].parameters())
print(f"{'one layer':36} {layer:>12,}")

# %% [markdown]
# ## Exercise 2: cross-entropy
#
# A model gives one logit $z_j$ for each class. The loss of one text with the right class $c$ is
#
# $$\ell = -\log \frac{e^{z_c}}{\sum_j e^{z_j}} = \log \sum_j e^{z_j} - z_c$$
#
# and the loss of a batch is the mean. `torch.exp(torch.tensor(1000.0))` is `inf`, so take the largest logit $M$ out of
# the sum first: $\log \sum_j e^{z_j} = M + \log \sum_j e^{z_j - M}$. Do not call torch's own loss; you may use
# `torch.logsumexp` to compare.


# %% tags=["exercise", "points:3"]
def my_cross_entropy(logits, labels):
    """The mean loss; logits (n, classes), labels (n,) with the number of the right class."""
    ### BEGIN SOLUTION
    # Hint: logits[torch.arange(len(labels)), labels] takes the logit of the right class from every row.
    largest = logits.max(dim=1, keepdim=True).values
    log_sum_exp = largest[:, 0] + (logits - largest).exp().sum(dim=1).log()
    right = logits[torch.arange(len(labels)), labels]
    return (log_sum_exp - right).mean()
    ### END SOLUTION


# %% tags=["check"]
check("optimizers.cross_entropy", my_cross_entropy)

# %% [markdown]
# A new head knows nothing, so its two logits are almost equal, and the loss is close to $\ln 2 = 0.693$. This number
# tells you whether a run *begins* as it should.

# %%
tweets = load_sentiment("tweets")
batch = next(iter(make_loader(tweets["train"].select(range(64)), tokenizer, 64)))
with torch.no_grad():
    first_loss = model.eval()(**batch).loss.item()
assert 0.55 < first_loss < 0.85, f"a new head of two classes should begin near 0.69, not at {first_loss:.2f}"
print("the first loss is near ln 2")

# %% [markdown]
# ## Exercise 3: its gradient
#
# The gradient of this loss by the logits is $(p - y)/n$: what the model said minus what was right, over the number of
# texts. $p$ is the softmax, and $y$ is 1 at the right class and 0 elsewhere.


# %% tags=["exercise", "points:2"]
def my_gradient(logits, labels):
    """The gradient of the mean loss by the logits, (n, classes)."""
    ### BEGIN SOLUTION
    # Hint: torch.nn.functional.one_hot(labels, classes) makes y.
    y = torch.nn.functional.one_hot(labels, logits.shape[1])
    return (logits.softmax(dim=1) - y) / len(labels)
    ### END SOLUTION


# %% tags=["check"]
check("optimizers.gradient", my_gradient)

# %%
logits = torch.tensor([[2.0, 0.0], [-1.0, 1.0]], requires_grad=True)
labels = torch.tensor([0, 0])
torch.nn.functional.cross_entropy(logits, labels).backward()
print("torch's autograd:", logits.grad.flatten())
print("the formula:     ", cross_entropy_gradient(logits.detach(), labels).flatten())

# %% [markdown]
# ## Exercise 4: momentum
#
# Write one step, with the sum $v$ handed in and handed back:
#
# $$v \leftarrow \mu v + g, \qquad w \leftarrow w - \eta v$$


# %% tags=["exercise", "points:2"]
def momentum_step(w, g, v, lr, mu):
    """One step of gradient descent with momentum; returns the new w and the new v."""
    ### BEGIN SOLUTION
    # Hint: renew v first, then step with the new v.
    v = mu * v + g
    w = w - lr * v
    return w, v
    ### END SOLUTION


# %% tags=["check"]
check("optimizers.momentum", momentum_step)

# %% [markdown]
# ## Exercise 5: AdamW
#
# Write step number $t$, which counts from 1:
#
# $$m \leftarrow \beta_1 m + (1-\beta_1)\,g, \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2$$
#
# $$\hat m = \frac{m}{1-\beta_1^t}, \qquad \hat v = \frac{v}{1-\beta_2^t}, \qquad
# w \leftarrow (1 - \eta\lambda)\,w - \eta\,\frac{\hat m}{\sqrt{\hat v} + \varepsilon}$$


# %% tags=["exercise", "points:3"]
def adamw_step(w, g, m, v, t, lr, beta1, beta2, eps, decay):
    """Step t of AdamW; returns the new w, m and v."""
    ### BEGIN SOLUTION
    # Hint: the decay shrinks w itself, and never touches g, m or v.
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    w = (1 - lr * decay) * w - lr * m_hat / (v_hat.sqrt() + eps)
    return w, m, v
    ### END SOLUTION


# %% tags=["check"]
check("optimizers.adamw", adamw_step)

# %% [markdown]
# ## Down a bowl
#
# $f(w) = \frac12 (w_1^2 + 20\,w_2^2)$ is a long bowl, twenty times as steep across as along. Its gradient is
# $(w_1,\ 20\,w_2)$. Gradient descent multiplies $w_2$ by $1 - 20\eta$ in every step. So it shrinks as long as
# $\eta < 0.1$, and grows above.

# %%
curvature, start = torch.tensor([1.0, 20.0]), torch.tensor([-4.0, 1.0])


def bowl_gradient(w):
    return curvature * w


for rate in (0.005, 0.09, 0.102):
    path = descend(SGD(rate), bowl_gradient, start, steps=40)
    loss = (curvature * path[-1] ** 2).sum() / 2
    print(f"rate {rate:5}: the loss goes from 18 to {loss:.3g}")

# %% [markdown]
# ## Your experiment
#
# Change a rate or an optimiser and run the cell again. Ideas:
#
# * Which rate is the best for gradient descent?
# * What does momentum do at 0.09, the rate that is right for gradient descent?
# * What does Adam do at a rate of 1?

# %% tags=["nbval-ignore-output"]
paths = {
    "gradient descent, 0.09": descend(SGD(0.09), bowl_gradient, start, 40),
    "momentum 0.9, 0.02": descend(SGD(0.02, momentum=0.9), bowl_gradient, start, 40),
    "Adam, 0.3": descend(Adam(0.3), bowl_gradient, start, 40),
}
paths_on_a_bowl({title: path.tolist() for title, path in paths.items()})

# %% [markdown]
# ## On the tweets
#
# The body stays frozen, so each tweet becomes one vector, once and for all: the mean over its tokens. What is left to
# train is one linear layer of 2 · 384 weights and 2 biases. That takes a tenth of a second, so we can try many rates.

# %%
train = sentence_vectors(tweets["train"].select(range(1024)), model, tokenizer)
validation = sentence_vectors(tweets["validation"], model, tokenizer)
print(tuple(train[0].shape), tuple(validation[0].shape))

# %% tags=["nbval-ignore-output"]
floor = majority_accuracy(train[1].tolist(), validation[1].tolist())
losses, accuracies = {}, {}
print(f"knowing nothing: loss 0.693; always the larger class: accuracy {floor:.1%}\n")
for title, make in {"gradient descent": SGD, "AdamW": AdamW}.items():
    for rate in (1e-4, 3e-3, 1e-1, 3.0):
        weight = train_linear(*train, make(rate))
        scores = judge(weight, *validation)
        losses[title, rate], accuracies[title, rate] = scores["loss"], scores["accuracy"]
        print(f"{title:16} rate {rate:7g}: validation loss {scores['loss']:6.3f}, accuracy {scores['accuracy']:.1%}")

# %%
assert losses["gradient descent", 1e-4] > 0.6, "too small: it has hardly left its start"
assert losses["gradient descent", 1e-1] < 0.35, "right"
assert losses["AdamW", 3e-3] < 0.35, "right, and thirty times smaller than the rate of gradient descent"
assert losses["AdamW", 3.0] > 0.8, "too large: worse than knowing nothing"
assert accuracies["AdamW", 3e-3] > floor + 0.1
print("each optimiser has a rate that is too small, one that is right, and one that is too large")

# %% [markdown]
# The two optimisers want rates that are far apart. A learning rate without the name of its optimiser says nothing.
#
# ## What the optimiser keeps in memory

# %%
weights = sum(parameter.numel() for parameter in model.parameters())
for title, numbers in {"gradient descent": 0, "momentum": 1, "Adam and AdamW": 2}.items():
    print(f"{title:16} {numbers} numbers a trained weight: {4 * numbers * weights / 1e6:6.1f} MB for all of MiniLM")

# %% [markdown]
# ## The same in `torch.optim`
#
# In your own project, take torch's optimisers. Here are ten steps of torch's AdamW beside ours, in fp64.

# %%
curvature = curvature.double()
theirs = torch.nn.Parameter(start.double())
optimizer = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
ours = descend(AdamW(0.1, weight_decay=0.1), bowl_gradient, start.double(), steps=10)
worst = 0.0
for step in range(1, 11):
    optimizer.zero_grad()
    (curvature * theirs**2).sum().div(2).backward()
    optimizer.step()
    worst = max(worst, (ours[step] - theirs.detach()).abs().max().item())
assert worst < 1e-13
print("ten steps, and no difference above 1e-13")

# %% [markdown]
# And this is the loop that you will find in every project. `zero_grad` stands in it because torch *adds* each new
# gradient to the old one. Hand over the parameters that you want to train, and no others.

# %%
x, labels = train
torch.manual_seed(0)
head = torch.nn.Linear(384, 2)
optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.01)
for _ in range(10):
    for rows in torch.randperm(len(x)).split(32):
        loss = torch.nn.functional.cross_entropy(head(x[rows, :-1]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
with torch.no_grad():
    final = cross_entropy(head(validation[0][:, :-1]), validation[1]).item()
assert final < 0.35
print("torch's loop ends below a validation loss of 0.35, as ours did")

# %% [markdown]
# ## Take away
#
# * Count before you train. Matrices make up almost everything; biases and gains are a thousandth.
# * The loss of two classes begins near 0.69. The gradient is the error, $p - y$.
# * Momentum adds old gradients; Adam divides by their size; AdamW keeps weight decay out of it.
# * The learning rate belongs to the optimiser and to what is trained. Try a few, ten times apart.
