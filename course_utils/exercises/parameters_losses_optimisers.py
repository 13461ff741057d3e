"""The checks of chapter 2, Parameters, losses and optimisers."""

from __future__ import annotations

from typing import Any

import torch

from course_utils.exercises.checking import (
    Wrong,
    call,
    compare,
    equal,
    exercise,
    loss,
    number,
    random_tensors,
    tensor,
    trained_tensors,
)
from course_utils.training.optimizers import cross_entropy, softmax

_COUNT = "What a parameter is"
_LOSS = "Cross-entropy by hand"
_MOMENTUM = "Momentum"
_ADAMW = "Weight decay: Adam and AdamW"


@exercise(
    "optimizers.count",
    points=2,
    passes="Four matrices for attention, two for the feed-forward part, a bias for each, and two normalisations.",
    section=_COUNT,
)
def _count(answer: Any) -> None:
    h, f = 10, 25
    attention, forward, norms = 4 * (h * h + h), 2 * h * f + f + h, 4 * h
    right = attention + forward + norms
    compare(
        number(call(answer, h, f)),
        right,
        [
            (right - h * h - h, "You counted three matrices for attention. There is a fourth, the output projection."),
            (right - h * h, "You counted three matrices for attention. There is a fourth, the output projection."),
            (
                right - 4 * h,
                "4 · h numbers are missing: the biases of the four attention matrices, or the gains and shifts of the two normalisations.",
            ),
            (right - 2 * h, "2 · h are missing: there are two normalisations, each with h gains and h shifts."),
            (right - f - h, "The two biases of the feed-forward part are missing, f and h numbers."),
            (right - f, "The bias of the first feed-forward matrix is missing. It has f numbers, one an output."),
            (right - h, "h numbers are missing. The second feed-forward matrix has a bias too."),
            (right + f - h, "A bias has one number an output: the second feed-forward matrix gives h outputs, not f."),
            (right - f + h, "A bias has one number an output: the first feed-forward matrix gives f outputs, not h."),
            (right - h * f, "The feed-forward part has two matrices, h → f and f → h."),
            (right - h * f - h, "The feed-forward part has two matrices, h → f and f → h, each with a bias."),
            (4 * h * h + 2 * h * f, "These are the matrices alone. Add the biases and the two normalisations."),
            (
                4 * h * h + 2 * h * f + norms,
                "The biases are missing: h for each of the four attention matrices, f and h for the feed-forward part.",
            ),
            (attention, "That is the attention alone. Add the feed-forward part and the two normalisations."),
            (forward, "That is the feed-forward part alone. Add the attention and the two normalisations."),
        ],
        f"With h = {h} and f = {f} it is {right}; your function returns something else. Go through the list in the text.",
    )
    if number(call(answer, 384, 1536)) != 1_774_464:
        raise Wrong("It is right for one size only; use the function's arguments.")


@exercise(
    "optimizers.cross_entropy",
    points=3,
    passes="It is right, and large logits do not overflow: that is what log-sum-exp is for.",
    section=_LOSS,
)
def _cross_entropy(answer: Any) -> None:
    (logits,) = trained_tensors((5, 3))
    labels = torch.tensor([0, 2, 1, 1, 0])
    p = softmax(logits)
    right_p = p[torch.arange(5), labels]
    value = loss(call(answer, logits, labels), logits)
    others = (1 - p).log().sum(1) - (1 - right_p).log()
    wrong_class = p[torch.arange(5), (labels + 1) % 3]
    compare(
        value,
        right_p.log().neg().mean(),
        [
            (
                right_p.log().neg().sum(),
                "That is the sum over the texts. Take the mean, or the loss grows with the batch.",
            ),
            (right_p.log().mean(), "The sign is wrong: the log of a probability is negative, and the loss is −log p."),
            (right_p.neg().mean(), "The logarithm is missing: the loss is −log p, not −p."),
            ((1 - right_p).mean(), "That is 1 − p. The loss is −log p, which grows without end when p goes to 0."),
            (right_p.mean(), "That is the probability of the right class. The loss is −log of it."),
            (right_p.log2().neg().mean(), "You took the logarithm to base 2. The loss uses the natural one, `.log()`."),
            (
                right_p.log10().neg().mean(),
                "You took the logarithm to base 10. The loss uses the natural one, `.log()`.",
            ),
            (
                -(right_p.log() + others).mean(),
                "You added log(1 − p) of the wrong classes. With a softmax, only the right class counts: the others are in its denominator.",
            ),
            (p.log().neg().mean(), "You averaged over all classes. Take the right class of each text."),
            (wrong_class.log().neg().mean(), "You took another class than the right one."),
            (
                logits.softmax(0)[torch.arange(5), labels].log().neg().mean(),
                "The softmax runs over the texts. It must run over the classes, the last dimension.",
            ),
            (logits.logsumexp(-1).mean(), "The logit of the right class is missing: log Σ exp(z) − z[right]."),
            (-logits[torch.arange(5), labels].mean(), "log Σ exp(z) is missing: the loss is log Σ exp(z) − z[right]."),
        ],
        "The result is not the mean of log Σ exp(z) − z[right class].",
    )
    huge = number(call(answer, torch.tensor([[1000.0, 0.0], [0.0, 2000.0]]), torch.tensor([1, 1])))
    if not equal(huge, 500.0):
        raise Wrong(
            f"It is right for small logits, but for (1000, 0) with the right class 1 and (0, 2000) with 1 it gives {huge:g} "
            "instead of 500: exp(1000) overflows. Take the largest logit out of the sum first."
        )
    if not equal(number(call(answer, torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))), 0.6931471805599453):
        raise Wrong("It is right for three classes only; for two equal logits it should give ln 2.")


@exercise(
    "optimizers.gradient",
    points=2,
    passes="The gradient is the error itself: what the model said minus what was right.",
    section=_LOSS,
)
def _gradient(answer: Any) -> None:
    (logits,) = random_tensors((5, 3))
    labels = torch.tensor([0, 2, 1, 1, 0])
    value = tensor(call(answer, logits, labels), (5, 3), "the gradient")
    p, y = softmax(logits), torch.nn.functional.one_hot(labels, 3)
    mean = cross_entropy(logits, labels)
    compare(
        value,
        (p - y) / 5,
        [
            ((y - p) / 5, "The sign is wrong. The gradient points uphill, to more loss: p − y."),
            (p - y, "That is the gradient of the sum. The loss is a mean over the texts: divide by their number."),
            (y - p, "The sign is wrong (p − y), and the mean is missing: divide by the number of texts."),
            ((p - y) / 3, "You divided by the number of classes. The mean is over the texts."),
            ((p - y) / 15, "You divided by texts and classes. The mean is over the texts alone."),
            (p / 5, "Subtract 1 at the right class of each text: p − y."),
            (p, "Subtract 1 at the right class of each text, and divide by the number of texts: (p − y) / n."),
            ((logits - y) / 5, "You forgot the softmax: p, not the logits, minus y."),
            (
                p * (1 - p) * (p - y) / 5,
                "The factor p (1 − p) belongs to a squared error. With cross-entropy it cancels, and p − y is left.",
            ),
            (
                (p - y) / 5 * mean,
                "The gradient is not multiplied by the loss.",
            ),
        ],
        "The result is not (p − y) / n, with p the softmax over the classes and y the one-hot labels.",
    )
    if not equal(tensor(call(answer, torch.zeros(1, 2), torch.tensor([1])), (1, 2), "the gradient"), [[0.5, -0.5]]):
        raise Wrong("It is right for five texts only. Take the number of texts from the logits' shape.")


def _several(result: Any, names: tuple[str, ...], shape: tuple[int, ...]) -> list[torch.Tensor]:
    if not (isinstance(result, (tuple, list)) and len(result) == len(names)):
        raise Wrong(f"Expected {len(names)} results: {', '.join(names)}.")
    return [tensor(value, shape, f"the new {name}") for name, value in zip(names, result, strict=True)]


@exercise(
    "optimizers.momentum",
    points=2,
    passes="With μ = 0.9, gradients that agree add up to ten times the step; gradients that disagree cancel.",
    section=_MOMENTUM,
)
def _momentum(answer: Any) -> None:
    w, g, v = random_tensors((4,), (4,), (4,))
    lr, mu = 0.3, 0.8
    result = call(answer, w, g, v, lr, mu)
    new_w, new_v = _several(result, ("w", "v"), (4,))
    right_v = mu * v + g
    right_w = w - lr * right_v
    if equal(new_w, right_v) and equal(new_v, right_w):
        raise Wrong("These are v and w. Return w first.")
    compare(
        new_v,
        right_v,
        [
            (mu * v + (1 - mu) * g, "You average, as Adam does. This momentum adds: v ← μ v + g, without (1 − μ)."),
            (
                mu * v + lr * g,
                "The learning rate stands in v. As torch has it, v ← μ v + g, and η multiplies v afterwards.",
            ),
            (
                mu * v - lr * g,
                "The learning rate and the minus stand in v. As torch has it, v ← μ v + g and w ← w − η v.",
            ),
            (mu * v - g, "The sign is wrong in v: it gathers the gradient, v ← μ v + g; the minus comes with w."),
            (v + mu * g, "μ multiplies the old v, so that it fades, and not the gradient."),
            (v + g, "μ is missing: without it, old gradients never fade."),
            (v, "You return the old v."),
            (g, "The old v is missing: that is gradient descent without momentum."),
        ],
        "The new v is not μ v + g.",
    )
    compare(
        new_w,
        right_w,
        [
            (w + lr * right_v, "You go uphill: subtract η v."),
            (w - lr * v, "You stepped with the old v. Renew v first, then step with it."),
            (w - lr * g, "You stepped with the gradient alone. Step with the new v."),
            (w - right_v, "The learning rate is missing: w ← w − η v."),
            (w - lr * (g + mu * right_v), "That is Nesterov's variant. Plain momentum steps with v itself."),
            (w, "The weight did not move."),
        ],
        "The new w is not w − η v, with the new v.",
    )
    v, w, g = random_tensors((7,), (7,), (7,))
    if not equal(_several(call(answer, w, g, v, 0.1, 0.5), ("w", "v"), (7,))[0], w - 0.1 * (0.5 * v + g)):
        raise Wrong("It is right for one learning rate and one μ only; use the arguments.")


@exercise(
    "optimizers.adamw",
    points=3,
    passes="Every weight takes steps of about the learning rate, whatever the size of its gradient, and shrinks by the same share.",
    section=_ADAMW,
)
def _adamw(answer: Any) -> None:
    w, g, m, v = random_tensors((4,), (4,), (4,), (4,))
    v = v**2
    t, lr, beta1, beta2, eps, decay = 3, 0.05, 0.8, 0.95, 0.1, 0.4
    names = ("w", "m", "v")
    new_w, new_m, new_v = _several(call(answer, w, g, m, v, t, lr, beta1, beta2, eps, decay), names, (4,))
    with_decay = g + decay * w
    right_m = _first_average(new_m, m, g, with_decay, (beta1, beta2), t)
    right_v = _second_average(new_v, v, g, with_decay, (beta1, beta2), t)
    _adamw_step(new_w, w, right_m, right_v, t, lr, (beta1, beta2), eps, decay)
    m, g, w, v = random_tensors((7,), (7,), (7,), (7,))
    new_w, *_ = _several(call(answer, w, g, m, v**2, 5, 0.1, 0.7, 0.99, 0.2, 0.3), names, (7,))
    m_hat, v_hat = (0.7 * m + 0.3 * g) / (1 - 0.7**5), (0.99 * v**2 + 0.01 * g**2) / (1 - 0.99**5)
    if not equal(new_w, 0.97 * w - 0.1 * m_hat / (v_hat.sqrt() + 0.2)):
        raise Wrong("It is right for one setting only; use the arguments.")


_L2 = "Weight decay went into the gradient: that is Adam, not AdamW. Leave the averages alone and shrink w itself."


def _first_average(
    value: torch.Tensor, m: torch.Tensor, g: torch.Tensor, with_decay: torch.Tensor, betas: tuple[float, float], t: int
) -> torch.Tensor:
    """Check the new m; returns the right one."""
    beta1, beta2 = betas
    right_m = beta1 * m + (1 - beta1) * g
    compare(
        value,
        right_m,
        [
            (beta1 * m + (1 - beta1) * with_decay, _L2),
            (beta1 * m + g, "That is momentum's sum. Adam averages: β₁ m + (1 − β₁) g."),
            (beta2 * m + (1 - beta2) * g, "m uses β₁, and v uses β₂."),
            ((1 - beta1) * m + beta1 * g, "The old average gets β₁, the new gradient 1 − β₁, not the other way round."),
            (right_m / (1 - beta1**t), "Return m as it is. The corrected m̂ is used in this step only, and not kept."),
            (m, "You return the old m."),
        ],
        "The new m is not β₁ m + (1 − β₁) g.",
    )
    return right_m


def _second_average(
    value: torch.Tensor, v: torch.Tensor, g: torch.Tensor, with_decay: torch.Tensor, betas: tuple[float, float], t: int
) -> torch.Tensor:
    """Check the new v; returns the right one."""
    beta1, beta2 = betas
    right_v = beta2 * v + (1 - beta2) * g**2
    compare(
        value,
        right_v,
        [
            (beta2 * v + (1 - beta2) * with_decay**2, _L2),
            (beta2 * v + (1 - beta2) * g, "v is the average of the squared gradient: g²."),
            (beta2 * v + (1 - beta2) * g.abs(), "v is the average of the squared gradient: g²."),
            (beta2 * v + g**2, "Adam averages: β₂ v + (1 − β₂) g²."),
            (beta1 * v + (1 - beta1) * g**2, "v uses β₂, and m uses β₁."),
            (right_v / (1 - beta2**t), "Return v as it is. The corrected v̂ is used in this step only, and not kept."),
            (v, "You return the old v."),
        ],
        "The new v is not β₂ v + (1 − β₂) g².",
    )
    return right_v


def _adamw_step(
    value: torch.Tensor,
    w: torch.Tensor,
    right_m: torch.Tensor,
    right_v: torch.Tensor,
    t: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> None:
    beta1, beta2 = betas
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    m_hat, v_hat = right_m / c1, right_v / c2
    update = lr * m_hat / (v_hat.sqrt() + eps)
    uncorrected = lr * right_m / (right_v.sqrt() + eps)
    early = lr * (right_m / (1 - beta1 ** (t - 1))) / ((right_v / (1 - beta2 ** (t - 1))).sqrt() + eps)
    late = lr * (right_m / (1 - beta1 ** (t + 1))) / ((right_v / (1 - beta2 ** (t + 1))).sqrt() + eps)
    shrunk = (1 - lr * decay) * w
    compare(
        value,
        shrunk - update,
        [
            (w - update, "The weight decay is missing: w shrinks by the share η λ."),
            (shrunk + update, "You go uphill: subtract."),
            (
                shrunk - uncorrected,
                "The correction of the averages is missing: divide m by 1 − β₁ᵗ and v by 1 − β₂ᵗ, or the first steps are wrong.",
            ),
            ((1 - decay) * w - update, "The decay is not multiplied by the learning rate: w shrinks by the share η λ."),
            ((1 + lr * decay) * w - update, "The weight grows. Decay makes it smaller: 1 − η λ."),
            (shrunk - lr * m_hat / (v_hat + eps), "The root is missing: divide by √v̂ + ε."),
            (shrunk - lr * m_hat / (v_hat + eps).sqrt(), "ε stands outside the root: √v̂ + ε."),
            (shrunk - lr * m_hat / v_hat.sqrt(), "ε is missing: divide by √v̂ + ε."),
            (shrunk - lr * m_hat, "Nothing is divided by √v̂ + ε."),
            (shrunk - update / lr, "The learning rate is missing in the step."),
            (shrunk - early, "t counts from 1: this is step t, so the power is t, not t − 1."),
            (shrunk - late, "t is the number of this step already: the power is t, not t + 1."),
            (
                shrunk - lr * (right_m / (1 - beta1 * t)) / ((right_v / (1 - beta2 * t)).sqrt() + eps),
                "It is β to the power of t, not β times t.",
            ),
            (shrunk, "The weight only shrinks; the step itself is missing."),
            (w, "The weight did not move."),
        ],
        "The new w is not (1 − η λ) w − η m̂ / (√v̂ + ε).",
    )
