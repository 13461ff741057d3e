"""Answers to the exercises of chapter 2: wrong ones with the words that name the mistake, and other right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Function = Callable[..., Any]


def _p(logits: Any, labels: Any) -> Any:
    return logits.softmax(-1)[torch.arange(len(labels)), labels]


def _overflowing(logits: Any, labels: Any) -> Any:
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return -p[torch.arange(len(labels)), labels].log().mean()


def _y(logits: Any, labels: Any) -> Any:
    return nn.functional.one_hot(labels, logits.shape[1])


def _by_autograd(logits: Any, labels: Any) -> Any:
    leaf = logits.clone().requires_grad_()
    nn.functional.cross_entropy(leaf, labels).backward()
    return leaf.grad


def _inplace_momentum(w: Any, g: Any, v: Any, lr: float, mu: float) -> Any:
    v.mul_(mu).add_(g)
    w -= lr * v
    return w, v


def _momentum(w: Any, g: Any, v: Any, lr: float, mu: float) -> Any:
    return w - lr * (mu * v + g), mu * v + g


def _adamw(
    w: Any, g: Any, m: Any, v: Any, t: int, lr: float, beta1: float, beta2: float, eps: float, decay: float,
    *, old: bool = False, correct: bool = True, power: int = 0, decoupled: bool = True, inside: bool = False,
    plain: bool = False, scaled: bool = True, root: bool = True,
) -> Any:  # fmt: skip
    """AdamW with one mistake to choose."""
    if not decoupled:
        g = g + decay * w
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * (g if plain else g**2)
    c1, c2 = (1 - beta1 ** (t + power), 1 - beta2 ** (t + power)) if correct else (1.0, 1.0)
    bottom = v / c2 + eps
    if root:
        bottom = (v / c2 + eps).sqrt() if inside else (v / c2).sqrt() + eps
    if decoupled and not old:
        w = w - (lr if scaled else 1) * decay * w
    return w - lr * m / c1 / bottom, m, v


def _with(**mistake: Any) -> Function:
    return lambda *arguments: _adamw(*arguments, **mistake)


def _torch_adamw(w: Any, g: Any, m: Any, v: Any, t: int, lr: float, b1: float, b2: float, eps: float, d: float) -> Any:
    parameter = nn.Parameter(w.clone())
    optimizer = torch.optim.AdamW([parameter], lr=lr, betas=(b1, b2), eps=eps, weight_decay=d)
    state = {"step": torch.tensor(float(t - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    optimizer.state[parameter] = state
    parameter.grad = g.clone()
    optimizer.step()
    return parameter.detach(), state["exp_avg"], state["exp_avg_sq"]


WRONG: dict[str, list[tuple[Function, str]]] = {
    "optimizers.count": [
        (lambda h, f: 3 * (h * h + h) + 2 * h * f + f + h + 4 * h, "output projection"),
        (lambda h, f: 4 * (h * h + h) + 2 * h * f + f + h, "gains and shifts"),
        (lambda h, f: 4 * h * h + 2 * h * f + f + h + 4 * h, "biases of the four attention matrices"),
        (lambda h, f: 4 * (h * h + h) + 2 * h * f + f + h + 2 * h, "two normalisations"),
        (lambda h, f: 4 * (h * h + h) + 2 * h * f + 4 * h, "biases of the feed-forward part"),
        (lambda h, f: 4 * (h * h + h) + 2 * (h * f + f) + 4 * h, "one number an output"),
        (lambda h, f: 4 * h * h + 2 * h * f, "matrices alone"),
        (lambda h, f: 4 * (h * h + h), "attention alone"),
        (lambda h, f: 1015, "one size only"),
        (lambda h, f: 7, "Go through the list"),
    ],
    "optimizers.cross_entropy": [
        (lambda z, y: nn.functional.cross_entropy(z, y, reduction="sum"), "sum over the texts"),
        (lambda z, y: _p(z, y).log().mean(), "sign is wrong"),
        (lambda z, y: 1 - _p(z, y).mean(), "1 − p"),
        (lambda z, y: -_p(z, y).mean(), "logarithm is missing"),
        (lambda z, y: -_p(z, y).log2().mean(), "base 2"),
        (lambda z, y: -z.log_softmax(-1).mean(), "averaged over all classes"),
        (lambda z, y: nn.functional.cross_entropy(z.T, y.new_tensor([0, 1, 2])), "not the mean"),
        (lambda z, y: -z.softmax(0)[torch.arange(len(y)), y].log().mean(), "over the texts"),
        (lambda z, y: z.logsumexp(-1).mean(), "logit of the right class is missing"),
        (_overflowing, "overflows"),
        (lambda z, y: nn.functional.cross_entropy(z, y).item(), "Without `.item()`"),
        (lambda z, y: nn.functional.cross_entropy(z.data, y), "No gradient comes back"),
        (
            lambda z, y: -(z - z.logsumexp(-1, keepdim=True)).detach().numpy()[range(len(y)), y].mean(),
            "Expected a loss",
        ),
        (lambda z, y: None, "return"),
    ],
    "optimizers.gradient": [
        (lambda z, y: (_y(z, y) - z.softmax(-1)) / len(z), "points uphill"),
        (lambda z, y: z.softmax(-1) - _y(z, y), "gradient of the sum"),
        (lambda z, y: (z.softmax(-1) - _y(z, y)) / z.shape[1], "number of classes"),
        (lambda z, y: z.softmax(-1) / len(z), "Subtract 1"),
        (lambda z, y: (z - _y(z, y)) / len(z), "forgot the softmax"),
        (lambda z, y: (z.softmax(-1) - _y(z, y)) / 5, "five texts only"),
        (lambda z, y: _p(z, y), "should have the shape"),
    ],
    "optimizers.momentum": [
        (lambda w, g, v, lr, mu: (w - lr * g, mu * v + g), "gradient alone"),
        (lambda w, g, v, lr, mu: (w - lr * v, mu * v + g), "old v"),
        (lambda w, g, v, lr, mu: (w + lr * (mu * v + g), mu * v + g), "uphill"),
        (lambda w, g, v, lr, mu: (w - lr * (mu * v + (1 - mu) * g), mu * v + (1 - mu) * g), "as Adam does"),
        (lambda w, g, v, lr, mu: (w - (mu * v + lr * g), mu * v + lr * g), "learning rate stands in v"),
        (lambda w, g, v, lr, mu: (w - lr * (g + mu * (mu * v + g)), mu * v + g), "Nesterov"),
        (lambda w, g, v, lr, mu: (mu * v + g, w - lr * (mu * v + g)), "Return w first"),
        (lambda w, g, v, lr, mu: w - lr * (mu * v + g), "Expected 2 results"),
        (lambda w, g, v, lr, mu: _momentum(w, g, v, 0.3, 0.8), "one learning rate"),
        (_inplace_momentum, "in place"),
    ],
    "optimizers.adamw": [
        (_with(decoupled=False), "that is Adam, not AdamW"),
        (_with(correct=False), "correction of the averages"),
        (_with(power=-1), "not t − 1"),
        (_with(power=1), "not t + 1"),
        (_with(old=True), "weight decay is missing"),
        (_with(scaled=False), "not multiplied by the learning rate"),
        (_with(inside=True), "outside the root"),
        (_with(root=False), "The root is missing"),
        (_with(plain=True), "squared gradient"),
        (lambda w, g, m, v, *rest: _adamw(w, g, m, v, 3, 0.05, 0.8, 0.95, 0.1, 0.4), "one setting only"),
        (lambda *arguments: _adamw(*arguments)[0], "Expected 3 results"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "optimizers.count": [
        lambda h, f: sum(p.numel() for p in nn.TransformerEncoderLayer(h, 1, f).parameters()),
        lambda h, f: float(4 * h**2 + 9 * h + f + 2 * h * f),
    ],
    "optimizers.cross_entropy": [
        nn.functional.cross_entropy,
        lambda z, y: nn.functional.nll_loss(z.log_softmax(-1), y),
        lambda z, y: (z.logsumexp(-1) - z.gather(1, y[:, None]).squeeze(1)).mean(),
    ],
    "optimizers.gradient": [_by_autograd, lambda z, y: (z.softmax(-1) - _y(z, y)) / len(y)],
    "optimizers.momentum": [_momentum, lambda w, g, v, lr, mu: [w - lr * g - lr * mu * v, g + mu * v]],
    "optimizers.adamw": [_torch_adamw, _with()],
}
