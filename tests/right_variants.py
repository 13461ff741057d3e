"""Different answers that are all right: as people write them who know another way.

Beside `RIGHT` of the chapters' answers; a check that refuses one of these judges a style, and no result.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from course_utils.data import clean_text
from course_utils.distillation import soft_label_loss

Function = Callable[..., Any]


# --- why.majority, why.freeze, why.memory ---------------------------------------------------------------------------


def _by_comprehension(train: Any, test: Any) -> Any:
    common = max(set(train), key=train.count)
    return len([label for label in test if label == common]) / len(test)


def _by_loop(train: Any, test: Any) -> Any:
    votes = {0: 0, 1: 0}
    for label in train:
        votes[label] += 1
    answer, hits = (1 if votes[1] > votes[0] else 0), 0
    for label in test:
        if label == answer:
            hits += 1
    return hits / len(test)


def _by_mean(train: Any, test: Any) -> Any:
    share = sum(test) / len(test)
    return share if sum(train) * 2 > len(train) else 1 - share


def _by_torch(train: Any, test: Any) -> Any:
    common = torch.bincount(torch.tensor(train)).argmax()
    return (torch.tensor(test) == common).float().mean()


def _by_sklearn(train: Any, test: Any) -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier().fit(np.zeros((len(train), 1)), train).score(np.zeros((len(test), 1)), test)


def _by_pandas(train: Any, test: Any) -> Any:
    import pandas

    return (pandas.Series(test) == pandas.Series(train).mode()[0]).mean()


def _freeze_names(model: Any) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("classifier.")


def _freeze_in_two_loops(model: Any) -> None:
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in model.classifier.parameters():
        parameter.requires_grad = True


def _freeze_children(model: Any) -> Any:
    for name, child in model.named_children():
        child.requires_grad_(name == "classifier")
    return model


def _freeze_modules(model: Any) -> None:
    head = set(model.classifier.parameters())
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(parameter in head)


def _freeze_by_identity(model: Any) -> None:
    head = {id(parameter) for parameter in model.classifier.parameters()}
    [parameter.requires_grad_(False) for parameter in model.parameters() if id(parameter) not in head]


def _freeze_by_apply(model: Any) -> None:
    model.bert.apply(lambda module: [parameter.requires_grad_(False) for parameter in module.parameters()] and None)


def _freeze_by_attribute(model: Any) -> None:
    for parameter in model.bert.parameters():
        setattr(parameter, "requires_grad", False)  # noqa: B010 (people write it so)


def _freeze_and_rest(model: Any) -> Any:
    model.bert.eval()
    return model.bert.requires_grad_(False)


def _freeze_while(model: Any) -> None:
    rest = list(model.named_parameters())
    while rest:
        name, parameter = rest.pop()
        if "classifier" not in name:
            parameter.requires_grad = False


def _freeze_by_dictionary(model: Any) -> None:
    table = dict(model.named_parameters())
    for name in table.keys() - {"classifier.weight", "classifier.bias"}:
        table[name].requires_grad = False


# --- lora -----------------------------------------------------------------------------------------------------------


def _module(x: Any, W: Any, b: Any, A: Any, B: Any, alpha: Any) -> Any:
    down, up = nn.LazyLinear(len(A), bias=False), nn.LazyLinear(len(B), bias=False)
    up(down(x))
    adapted = torch.func.functional_call(up, {"weight": B}, torch.func.functional_call(down, {"weight": A}, x))
    return F.linear(x, W, b) + adapted * (alpha / A.size(0))


def _row_by_row(x: Any, W: Any, b: Any, A: Any, B: Any, alpha: Any) -> Any:
    s = alpha / len(A)
    return torch.stack([W @ row + b + s * (B @ (A @ row)) for row in x])


def _added(x: Any, W: Any, b: Any, A: Any, B: Any, alpha: Any) -> Any:
    out = x.matmul(W.t())
    out += b
    out += (alpha / A.shape[0]) * x.matmul(A.t()).matmul(B.t())
    return out


def _rank_one_sum(x: Any, W: Any, b: Any, A: Any, B: Any, alpha: Any) -> Any:
    s = alpha / len(A)
    return F.linear(x, W, b) + sum(s * torch.outer(x @ A[k], B[:, k]) for k in range(len(A)))


def _in_double(x: Any, W: Any, b: Any, A: Any, B: Any, alpha: Any) -> Any:
    delta = (alpha / A.shape[0]) * (B.double() @ A.double())
    return (x.double() @ (W.double() + delta).T + b.double()).to(x.dtype)


_LORA: list[Function] = [
    lambda x, W, b, A, B, alpha: x @ W.T + b + alpha / A.shape[0] * x @ A.T @ B.T,
    lambda x, W, b, A, B, alpha: F.linear(x, W, b) + alpha / len(A) * F.linear(F.linear(x, A), B),
    lambda x, W, b, A, B, alpha: torch.addmm(F.linear(x, W, b), x @ A.T, B.T, alpha=alpha / len(A)),
    lambda x, W, b, A, B, alpha: torch.einsum("ni,oi->no", x, W + alpha / len(A) * B @ A) + b,
    lambda x, W, b, A, B, alpha: torch.einsum("ni,ri,or->no", x, A, B) * (alpha / len(A)) + x @ W.mT + b,
    lambda x, W, b, A, B, alpha: (W @ x.T + alpha / B.shape[1] * (B @ A @ x.T)).T + b,
    lambda x, W, b, A, B, alpha: torch.cat((x, x @ A.T * alpha / len(A)), 1) @ torch.cat((W, B), 1).T + b,
    lambda x, W, b, A, B, alpha: x @ (W + (alpha / A.size(dim=0)) * torch.mm(B, A)).transpose(0, 1) + b.unsqueeze(0),
    _module,
    _row_by_row,
    _added,
    _rank_one_sum,
    _in_double,
]
_MERGE: list[Function] = [
    lambda W, A, B, alpha: W + alpha / A.shape[0] * B @ A,
    lambda W, A, B, alpha: W + B @ (alpha / len(A) * A),
    lambda W, A, B, alpha: W.clone().add_(B @ A, alpha=alpha / len(A)),
    lambda W, A, B, alpha: torch.add(W, torch.matmul(B, A), alpha=alpha / B.shape[1]),
    lambda W, A, B, alpha: W + alpha / len(A) * torch.einsum("or,ri->oi", B, A),
    lambda W, A, B, alpha: (W.T + alpha / len(A) * A.T @ B.T).T,
    lambda W, A, B, alpha: W + alpha / len(A) * sum(torch.outer(B[:, k], A[k]) for k in range(len(A))),
    lambda W, A, B, alpha: torch.baddbmm(W[None], B[None], A[None], alpha=alpha / len(A))[0],
    lambda W, A, B, alpha: nn.Parameter(W + alpha / len(A) * B @ A),
    torch.no_grad()(lambda W, A, B, alpha: W.detach().clone() + (alpha / len(A)) * (B @ A)),
    lambda W, A, B, alpha: W + torch.func.vmap(lambda row: row @ A)(B) * alpha / len(A),
]
_START: list[Function] = [
    lambda i, o, r: (torch.randn(r, i), torch.zeros(o, r)),
    lambda i, o, r: (torch.randn(r, i) / math.sqrt(i), torch.zeros(o, r)),
    lambda i, o, r: (0.01 * torch.randn(r, i), torch.zeros((o, r))),
    lambda i, o, r: (torch.zeros(r, i), torch.randn(o, r) * 0.02),
    lambda i, o, r: (nn.init.kaiming_uniform_(torch.empty(r, i), a=math.sqrt(5)), torch.zeros(o, r)),
    lambda i, o, r: (nn.init.normal_(torch.empty(r, i), std=0.02), nn.init.zeros_(torch.empty(o, r))),
    lambda i, o, r: (nn.init.xavier_normal_(torch.zeros(r, i)), torch.zeros(o, r)),
    lambda i, o, r: (nn.init.orthogonal_(torch.empty(r, i)), torch.zeros(o, r)),
    lambda i, o, r: (2 * torch.rand(r, i) - 1, torch.zeros(o, r)),
    lambda i, o, r: [nn.Parameter(torch.randn(r, i)), nn.Parameter(torch.zeros(o, r))],
    lambda i, o, r: (nn.Linear(i, r, bias=False).weight, torch.zeros(o, r, requires_grad=True)),
    lambda i, o, r: (torch.normal(0.0, 1 / r, (r, i)), torch.full((o, r), 0.0)),
]


# --- adapters, ia3, prompts -----------------------------------------------------------------------------------------


def _sequential(h: Any, D: Any, b: Any, U: Any, c: Any) -> Any:
    net = nn.Sequential(nn.Linear(*D.T.shape), nn.ReLU(), nn.Linear(*U.T.shape))
    weights = {"0.weight": D, "0.bias": b, "2.weight": U, "2.bias": c}
    return h + torch.func.functional_call(net, weights, h)


def _masked_relu(h: Any, D: Any, b: Any, U: Any, c: Any) -> Any:
    z = h @ D.T + b
    return h + (z * (z > 0)) @ U.T + c


_BOTTLENECK: list[Function] = [
    lambda h, D, b, U, c: h + torch.relu(h @ D.T + b) @ U.T + c,
    lambda h, D, b, U, c: F.linear(F.relu(F.linear(h, D, b)), U, c) + h,
    lambda h, D, b, U, c: h + (U @ torch.relu(D @ h.T + b[:, None])).T + c,
    lambda h, D, b, U, c: torch.addmm(c, (h @ D.T + b).clamp(min=0), U.T) + h,
    lambda h, D, b, U, c: h + torch.maximum(h @ D.T + b, torch.zeros(())) @ U.T + c,
    lambda h, D, b, U, c: torch.stack([row + U @ torch.relu(D @ row + b) + c for row in h]),
    lambda h, D, b, U, c: h + torch.einsum("nm,dm->nd", torch.einsum("nd,md->nm", h, D).add(b).relu(), U) + c,
    lambda h, D, b, U, c: torch.add(h, F.linear(F.threshold(F.linear(h, D, b), 0, 0), U, c)),
    lambda h, D, b, U, c: h + F.leaky_relu(h @ D.mT + b, 0.0) @ U.mT + c,
    lambda h, D, b, U, c: torch.func.vmap(lambda row: row + U @ (D @ row + b).relu() + c)(h),
    _sequential,
    _masked_relu,
]


def _heads(q: Any, k: Any, v: Any, l_k: Any, l_v: Any) -> Any:
    return F.scaled_dot_product_attention(q[None], (k * l_k)[None], (v * l_v)[None])[0]


def _by_exp(q: Any, k: Any, v: Any, l_k: Any, l_v: Any) -> Any:
    scores = (q @ (k * l_k).T / q.shape[-1] ** 0.5).exp()
    return scores / scores.sum(1, keepdim=True) @ v * l_v


_IA3: list[Function] = [
    lambda q, k, v, l_k, l_v: torch.softmax(q @ (l_k * k).T / math.sqrt(k.shape[1]), -1) @ (l_v * v),
    lambda q, k, v, l_k, l_v: (q @ torch.diag(l_k) @ k.T / k.size(1) ** 0.5).softmax(1) @ v @ torch.diag(l_v),
    lambda q, k, v, l_k, l_v: torch.softmax((q * l_k) @ k.T / len(l_k) ** 0.5, dim=1) @ v * l_v,
    lambda q, k, v, l_k, l_v: F.softmax(q @ (k * l_k[None]).mT * q.shape[1] ** -0.5, dim=-1) @ (v * l_v[None]),
    lambda q, k, v, l_k, l_v: torch.einsum(
        "qt,te->qe", torch.einsum("qd,td,d->qt", q, k, l_k).div(q.shape[1] ** 0.5).softmax(-1), v * l_v
    ),
    lambda q, k, v, l_k, l_v: torch.stack(
        [torch.softmax((k * l_k) @ row / len(row) ** 0.5, 0) @ (v * l_v) for row in q]
    ),
    lambda q, k, v, l_k, l_v: torch.exp(torch.log_softmax(q @ (k * l_k).T / len(l_k) ** 0.5, 1)) @ (v * l_v),
    lambda q, k, v, l_k, l_v: nn.Softmax(dim=1)(q / len(l_k) ** 0.5 @ (k * l_k).T) @ v.mul(l_v),
    lambda q, k, v, l_k, l_v: ((v * l_v).T @ torch.softmax((k * l_k) @ q.T / len(l_k) ** 0.5, dim=0)).T,
    _heads,
    _by_exp,
]
_PREFIX: list[Function] = [
    lambda q, K, V, P_K, P_V: (
        torch.softmax(q @ torch.cat([P_K, K]).T / math.sqrt(q.shape[1]), -1) @ torch.cat([P_V, V])
    ),
    lambda q, K, V, P_K, P_V: F.scaled_dot_product_attention(q, torch.vstack((P_K, K)), torch.vstack((P_V, V))),
    lambda q, K, V, P_K, P_V: torch.softmax(q @ torch.cat([K, P_K]).T / q.shape[1] ** 0.5, 1) @ torch.cat([V, P_V]),
    lambda q, K, V, P_K, P_V: (
        torch.cat((q @ P_K.T, q @ K.T), dim=1).div(K.shape[1] ** 0.5).softmax(1) @ torch.cat((P_V, V))
    ),
    lambda q, K, V, P_K, P_V: torch.stack(
        [torch.softmax(torch.cat((P_K, K)) @ row / len(row) ** 0.5, 0) @ torch.cat((P_V, V)) for row in q]
    ),
    lambda q, K, V, P_K, P_V: _gated(q, K, V, P_K, P_V),
    lambda q, K, V, P_K, P_V: torch.einsum(
        "qk,kd->qd",
        torch.einsum("qd,kd->qk", q, torch.cat((P_K, K))).mul(q.shape[1] ** -0.5).softmax(-1),
        torch.cat((P_V, V)),
    ),
    lambda q, K, V, P_K, P_V: (
        torch.softmax(q / q.shape[1] ** 0.5 @ torch.concat((P_K, K)).mT, dim=1) @ torch.concat((P_V, V))
    ),
    lambda q, K, V, P_K, P_V: (
        (torch.cat((P_V, V)).T @ torch.softmax(torch.cat((P_K, K)) @ q.T / q.shape[1] ** 0.5, 0)).T
    ),
    lambda q, K, V, P_K, P_V: (
        nn.Softmax(-1)(q @ torch.cat((P_K, K), 0).t() / np.sqrt(q.shape[1])) @ torch.cat((P_V, V), 0)
    ),
]


def _gated(q: Any, K: Any, V: Any, P_K: Any, P_V: Any) -> Any:
    root = q.shape[1] ** 0.5
    of_prefix, of_text = (q @ P_K.T / root).exp(), (q @ K.T / root).exp()
    return (of_prefix @ P_V + of_text @ V) / (of_prefix.sum(1) + of_text.sum(1))[:, None]


def _filled(E: Any, mask: Any, P: Any) -> Any:
    texts, tokens, hidden = E.shape
    x = E.new_zeros(texts, len(P) + tokens, hidden)
    x[:, : len(P)], x[:, len(P) :] = P, E
    return x, F.pad(mask, (len(P), 0), value=1)


_PREPEND: list[Function] = [
    lambda E, m, P: (
        torch.cat((P.expand(len(E), -1, -1), E), 1),
        torch.cat((torch.ones(len(E), len(P), dtype=m.dtype), m), 1),
    ),
    lambda E, m, P: (torch.cat([P[None].repeat(E.shape[0], 1, 1), E], dim=1), F.pad(m, (P.shape[0], 0), value=1)),
    lambda E, m, P: (torch.stack([torch.cat((P, text)) for text in E]), F.pad(m, (len(P), 0), value=1)),
    lambda E, m, P: [
        torch.cat((P.unsqueeze(0).expand(E.size(0), *P.shape), E), dim=1),
        torch.hstack((m.new_ones(len(E), len(P)), m)),
    ],
    lambda E, m, P: (
        torch.hstack((P.repeat(len(E), 1).view(len(E), *P.shape), E)),
        torch.cat((torch.ones_like(m[:, :1]).expand(-1, len(P)), m), 1),
    ),
    lambda E, m, P: (torch.cat((torch.stack([P] * len(E)), E), 1), torch.cat((torch.ones(len(E), len(P)), m), 1)),
    lambda E, m, P: (
        torch.cat((torch.broadcast_to(P, (len(E), *P.shape)), E), -2),
        torch.cat((m.new_full((len(m), len(P)), 1), m), -1),
    ),
    lambda E, m, P: (
        torch.cat((torch.einsum("b,kh->bkh", torch.ones(len(E)), P), E), 1),
        F.pad(m, [len(P), 0], "constant", 1),
    ),
    lambda E, m, P: (
        torch.cat((torch.tile(P, (len(E), 1, 1)), E), 1),
        torch.tensor([[1] * len(P) + row.tolist() for row in m]),
    ),
    _filled,
]


# --- losses ---------------------------------------------------------------------------------------------------------


_CROSS_ENTROPY: list[Function] = [
    F.cross_entropy,
    nn.CrossEntropyLoss(),
    lambda z, y: -z.log_softmax(-1)[torch.arange(len(y)), y].mean(),
    lambda z, y: F.nll_loss(F.log_softmax(z, dim=1), y),
    lambda z, y: (torch.logsumexp(z, 1) - z[range(len(y)), y]).mean(),
    lambda z, y: -(F.one_hot(y, z.shape[1]) * z.log_softmax(1)).sum(1).mean(),
    lambda z, y: -torch.gather(z.log_softmax(1), 1, y.unsqueeze(1)).mean(),
    lambda z, y: sum(torch.logsumexp(row, 0) - row[label] for row, label in zip(z, y, strict=True)) / len(z),
    lambda z, y: -torch.distributions.Categorical(logits=z).log_prob(y).mean(),
    lambda z, y: F.cross_entropy(z, F.one_hot(y, z.shape[1]).float()),
    lambda z, y: F.cross_entropy(z, y, reduction="sum") / len(y),
    lambda z, y: (
        (z - z.amax(1, keepdim=True)).exp().sum(1).log() + z.amax(1) - z.take_along_dim(y[:, None], 1)[:, 0]
    ).mean(),
]


def _soft(student: Any, teacher: Any, T: Any) -> Any:
    p, log_p = F.softmax(teacher / T, -1), F.log_softmax(teacher / T, -1)
    return T * T * (p * (log_p - F.log_softmax(student / T, -1))).sum(-1).mean()


_SOFT: list[Function] = [
    _soft,
    lambda s, t, T: T**2 * F.kl_div((s / T).log_softmax(-1), (t / T).softmax(-1), reduction="batchmean"),
    lambda s, t, T: (
        T**2 * F.kl_div((s / T).log_softmax(-1), (t / T).log_softmax(-1), reduction="batchmean", log_target=True)
    ),
    lambda s, t, T: nn.KLDivLoss(reduction="batchmean")(F.log_softmax(s / T, 1), F.softmax(t / T, 1)) * T**2,
    lambda s, t, T: F.kl_div((s / T).log_softmax(1), (t / T).softmax(1), reduction="none").sum(1).mean() * T**2,
    lambda s, t, T: (
        T**2
        * torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=t / T), torch.distributions.Categorical(logits=s / T)
        ).mean()
    ),
    lambda s, t, T: T**2 * (F.cross_entropy(s / T, (t / T).softmax(1)) - F.cross_entropy(t / T, (t / T).softmax(1))),
    lambda s, t, T: T**2 * sum(_soft(a[None], b[None], T) / T**2 for a, b in zip(s, t, strict=True)) / len(s),
    lambda s, t, T: (
        T**2 * torch.einsum("nc,nc->", (t / T).softmax(1), (t / T).log_softmax(1) - (s / T).log_softmax(1)) / s.shape[0]
    ),
    lambda s, t, T: (T**2) * ((t / T).softmax(-1) * ((t / T).softmax(-1) / (s / T).softmax(-1)).log()).sum(1).mean(),
    soft_label_loss,
]


def _few(hard: Callable[[Any, Any], Any]) -> Function:
    """With this cross-entropy of logits and labels, of which there is at least one."""

    def loss(s: Any, t: Any, y: Any, a: Any, T: Any) -> Any:
        value = (1 - a) * soft_label_loss(s, t, T)
        return value + a * hard(s, y) if (y != -100).any() else value

    return loss


_FEW: list[Function] = [
    *(
        _few(hard)
        for hard in (
            F.cross_entropy,
            nn.CrossEntropyLoss(ignore_index=-100),
            lambda s, y: F.cross_entropy(s[y >= 0], y[y >= 0]),
            lambda s, y: F.nll_loss(s.log_softmax(1), y),
            lambda s, y: F.cross_entropy(s, y, reduction="none").sum() / (y != -100).sum(),
            lambda s, y: F.cross_entropy(s, y, reduction="sum") / int((y != -100).count_nonzero()),
            lambda s, y: -torch.stack([s[n].log_softmax(0)[y[n]] for n in range(len(y)) if y[n] != -100]).mean(),
            lambda s, y: -s.log_softmax(1)[y != -100].gather(1, y[y != -100][:, None]).mean(),
        )
    ),
    lambda s, t, y, a, T: (
        a * F.cross_entropy(s, y, reduction="sum") / max(int((y != -100).sum()), 1) + (1 - a) * soft_label_loss(s, t, T)
    ),
    lambda s, t, y, a, T: torch.nan_to_num(a * F.cross_entropy(s, y)) + (1 - a) * soft_label_loss(s, t, T),
    lambda s, t, y, a, T: a * (F.cross_entropy(s, y) if (y >= 0).sum() else 0.0) + (1.0 - a) * soft_label_loss(s, t, T),
]


# --- qlora ----------------------------------------------------------------------------------------------------------


def _weight(codes: Any, absmax: Any, levels: Any) -> Any:
    return levels[codes] * absmax[:, None]


def _by_vjp(x: Any, g: Any, codes: Any, absmax: Any, levels: Any, A: Any, B: Any, s: Any) -> Any:
    W = _weight(codes, absmax, levels).float()
    result: Any = torch.func.vjp(lambda z: F.linear(z, W) + s * F.linear(F.linear(z, A), B), x)
    return result[0], result[1](g)[0]


_QLORA: list[Function] = [
    lambda x, g, c, m, t, A, B, s: (
        x @ _weight(c, m, t).T + s * x @ A.T @ B.T,
        g @ _weight(c, m, t) + s * g @ B @ A,
    ),
    lambda x, g, c, m, t, A, B, s: (x @ (W := _weight(c, m, t) + s * B @ A).T, g @ W),
    lambda x, g, c, m, t, A, B, s: [F.linear(x, (W := m.unsqueeze(1) * t[c] + s * B @ A)), g @ W],
    lambda x, g, c, m, t, A, B, s: (
        x @ t[c].T * m + s * x @ A.T @ B.T,
        (g * m) @ t[c] + s * (g @ B) @ A,
    ),
    lambda x, g, c, m, t, A, B, s: (
        x @ (torch.diag(m) @ t[c]).T + s * x @ A.T @ B.T,
        g @ torch.diag(m) @ t[c] + s * g @ B @ A,
    ),
    lambda x, g, c, m, t, A, B, s: (
        F.linear(x, W := torch.index_select(t, 0, c.flatten()).view(c.shape) * m.view(-1, 1)) + s * (x @ A.T) @ B.T,
        torch.mm(g, W) + s * torch.mm(torch.mm(g, B), A),
    ),
    lambda x, g, c, m, t, A, B, s: (
        torch.einsum("ni,oi->no", x, W := F.embedding(c, t[:, None])[..., 0] * m[:, None] + s * B @ A),
        torch.einsum("no,oi->ni", g, W),
    ),
    lambda x, g, c, m, t, A, B, s: (
        torch.addmm(x @ _weight(c, m, t).T, x @ A.T, B.T, alpha=s),
        torch.addmm(g @ _weight(c, m, t), g @ B, A, alpha=s),
    ),
    lambda x, g, c, m, t, A, B, s: (
        (_weight(c, m, t) @ x.T + s * B @ (A @ x.T)).T,
        (_weight(c, m, t).T @ g.T + s * A.T @ (B.T @ g.T)).T,
    ),
    lambda x, g, c, m, t, A, B, s: (
        torch.stack(
            [(W := torch.stack([t[row] * k for row, k in zip(c, m, strict=True)]) + s * B @ A) @ row for row in x]
        ),
        g @ W,
    ),
    _by_vjp,
]


# --- the training loop ----------------------------------------------------------------------------------------------


def _moved(batch: Any, device: Any) -> Any:
    return {key: value.to(device) for key, value in batch.items()}


def _loop(
    *,
    zero: Callable[[Any, Any], Any] = lambda model, optimizer: optimizer.zero_grad(),
    move: Callable[[Any, Any], Any] = _moved,
    loss_of: Callable[[Any, Any], Any] = lambda model, batch: model(**batch).loss,
    clip: Callable[[Any, float], Any] = lambda model, norm: nn.utils.clip_grad_norm_(model.parameters(), norm),
    mean: Callable[[Any], Any] = lambda losses: sum(losses) / len(losses),
    zero_last: bool = False,
) -> Function:
    """A loop that is right, with one part written in another way."""

    def epoch(model: Any, loader: Any, optimizer: Any, scheduler: Any, device: Any, clip_norm: float) -> Any:
        model.train()
        losses = []
        for batch in loader:
            if not zero_last:
                zero(model, optimizer)
            loss = loss_of(model, move(batch, device))
            loss.backward()
            clip(model, clip_norm)
            optimizer.step()
            scheduler.step()
            if zero_last:
                zero(model, optimizer)
            losses.append(loss.item())
        return mean(losses)

    return epoch


def _clipped_by_hand(model: Any, norm: float) -> None:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    for gradient in gradients:
        gradient.mul_(min(1.0, norm / float(length + 1e-6)))


def _popped(model: Any, batch: Any) -> Any:
    labels = batch.pop("labels")
    return F.cross_entropy(model(**batch).logits, labels)


def _each_moved(batch: Any, device: Any) -> Any:
    for key in batch:
        batch[key] = batch[key].to(device=device, non_blocking=True)
    return batch


def _running_mean(losses: Any) -> Any:
    mean = 0.0
    for n, loss in enumerate(losses, start=1):
        mean += (loss - mean) / n
    return mean


_EPOCH: list[Function] = [
    _loop(),
    _loop(zero_last=True),
    _loop(zero=lambda model, optimizer: model.zero_grad()),
    _loop(zero=lambda model, optimizer: optimizer.zero_grad(set_to_none=False)),
    _loop(move=_each_moved),
    _loop(move=lambda batch, device: dict(zip(batch, (v.to(device) for v in batch.values()), strict=True))),
    _loop(loss_of=lambda model, batch: model(**batch)[0]),
    _loop(loss_of=lambda model, batch: nn.CrossEntropyLoss()(model(**batch).logits, batch["labels"])),
    _loop(loss_of=_popped),
    _loop(loss_of=lambda model, batch: model(batch["input_ids"], batch["attention_mask"], batch["labels"]).loss),
    _loop(clip=_clipped_by_hand),
    _loop(clip=lambda model, norm: nn.utils.clip_grad_norm_(list(model.parameters()), max_norm=norm, norm_type=2)),
    _loop(mean=np.mean),
    _loop(mean=_running_mean),
    _loop(mean=lambda losses: torch.tensor(losses).mean()),
]


# --- data and others ------------------------------------------------------------------------------------------------


def _key(text: str) -> str:
    return clean_text(text).casefold()


def _first_by_index(texts: Any) -> Any:
    keys = [_key(text) for text in texts]
    return [n for n, key in enumerate(keys) if keys.index(key) == n]


def _first_by_set(texts: Any) -> Any:
    seen: set[str] = set()
    return [n for n, text in enumerate(texts) if not (_key(text) in seen or seen.add(_key(text)))]  # type: ignore[func-returns-value]


def _first_by_dictionary(texts: Any) -> Any:
    found: dict[str, int] = {}
    for n, text in enumerate(texts):
        found.setdefault(_key(text), n)
    return list(found.values())


def _first_by_pandas(texts: Any) -> Any:
    import pandas

    return np.flatnonzero(~pandas.Series([_key(text) for text in texts]).duplicated())


_GRADIENT_OF_BIAS: list[Function] = [
    lambda g: g.sum((0, 1)),
    lambda g: g.sum(0).sum(0),
    lambda g: g.sum(dim=[0, 1]),
    lambda g: torch.einsum("bto->o", g),
    lambda g: g.reshape(-1, g.shape[-1]).sum(0),
    lambda g: g.flatten(0, 1).sum(dim=0),
    lambda g: torch.ones(g.shape[0] * g.shape[1]) @ g.view(-1, g.shape[2]),
    lambda g: torch.stack([text.sum(0) for text in g]).sum(0),
    lambda g: reduce(torch.add, [row for text in g for row in text]),
    lambda g: torch.sum(torch.sum(g, 1), 0),
    lambda g: g.mean((0, 1)) * g.shape[0] * g.shape[1],
]
_COUNT: list[Function] = [
    lambda shapes, rank: sum(rank * (o + i) for o, i in shapes),
    lambda shapes, rank: rank * sum(map(sum, shapes)),
    lambda shapes, rank: sum(rank * o + rank * i for (o, i) in shapes),
    lambda shapes, rank: int(np.sum(shapes) * rank),
    lambda shapes, rank: torch.tensor(shapes).sum() * rank,
    lambda shapes, rank: sum(torch.zeros(o, rank).numel() + torch.zeros(rank, i).numel() for o, i in shapes),
    lambda shapes, rank: rank * sum(o for o, _ in shapes) + rank * sum(i for _, i in shapes),
    lambda shapes, rank: reduce(lambda total, shape: total + rank * sum(shape), shapes, 0),
    lambda shapes, rank: sum(side * rank for shape in shapes for side in shape),
    lambda shapes, rank: float(math.fsum(rank * (shape[0] + shape[1]) for shape in shapes)),
]

#: Exercise → ten or more answers that are right.
VARIANTS: dict[str, list[Function]] = {
    "adapters.bottleneck": _BOTTLENECK,
    "bitfit.gradient": _GRADIENT_OF_BIAS,
    "data.deduplicate": [
        _first_by_index,
        _first_by_set,
        _first_by_dictionary,
        _first_by_pandas,
        lambda texts: sorted({_key(text): n for n, text in reversed(list(enumerate(texts)))}.values()),
        lambda texts: tuple(_first_by_set(texts)),
        lambda texts: torch.tensor(_first_by_set(texts)),
        lambda texts: np.array(_first_by_dictionary(texts)),
        lambda texts: [n for n in range(len(texts)) if _key(texts[n]) not in {_key(t) for t in texts[:n]}],
        lambda texts: [n for n, t in enumerate(texts) if not any(_key(t) == _key(u) for u in texts[:n])],
    ],
    "distillation.soft_loss": _SOFT,
    "few_shot_distillation.loss": _FEW,
    "ia3.attention": _IA3,
    "lora.count": _COUNT,
    "lora.forward": _LORA,
    "lora.initialise": _START,
    "lora.merge": _MERGE,
    "optimizers.cross_entropy": _CROSS_ENTROPY,
    "prefix_tuning.attention": _PREFIX,
    "prompt_tuning.prepend": _PREPEND,
    "qlora.layer": _QLORA,
    "training_loop.epoch": _EPOCH,
    "why.freeze": [
        _freeze_names,
        _freeze_in_two_loops,
        _freeze_children,
        _freeze_modules,
        _freeze_by_identity,
        _freeze_by_apply,
        _freeze_by_attribute,
        _freeze_and_rest,
        _freeze_while,
        _freeze_by_dictionary,
        lambda model: model.bert.requires_grad_(False),
    ],
    "why.majority": [
        _by_comprehension,
        _by_loop,
        _by_mean,
        _by_torch,
        _by_sklearn,
        _by_pandas,
        lambda train, test: test.count(max(train, key=train.count)) / len(test),
        lambda train, test: Counter(test)[Counter(train).most_common(1)[0][0]] / len(test),
        lambda train, test: np.mean(np.array(test) == np.bincount(train).argmax()),
        lambda train, test: sum(label == sorted(train)[len(train) // 2] for label in test) / len(test),
        lambda train, test: sum(label == round(sum(train) / len(train)) for label in test) / len(test),
    ],
}
