"""The loss and the optimisers of chapter 2 equal torch's, step for step; its result file holds what it must."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from course_utils.evaluation import results
from course_utils.models import anatomy
from course_utils.training import memory, optimizers
from course_utils.training.optimizers import SGD, Adam, AdamW, descend
from course_utils.workshop.experiments import parameters_losses_optimisers as study_optimizers

STEPS = 10


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _losses() -> dict[str, Callable[[Tensor], Tensor]]:
    """A bowl, and the loss of a linear classifier, with other data in each call: gradients that never repeat."""
    curvature = torch.tensor([[1.0, 20.0, 0.01]], dtype=torch.float64)
    x, labels = _random(64, 3, seed=1), (_random(64, seed=2) > 0).long()
    return {
        "bowl": lambda w: (curvature * (w - 0.5) ** 2).sum() / 2,
        "classifier": lambda w: nn.functional.cross_entropy(x @ w.T, labels),
    }


SETTINGS: list[tuple[str, Callable[[], Any], Callable[[list[Tensor]], torch.optim.Optimizer]]] = [
    ("gradient descent", lambda: SGD(0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    ("momentum 0.9", lambda: SGD(0.01, 0.9), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    ("momentum 0.5", lambda: SGD(0.05, 0.5), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5)),
    ("Adam", lambda: Adam(0.1), lambda p: torch.optim.Adam(p, lr=0.1)),
    (
        "Adam, other averages",
        lambda: Adam(1e-3, (0.5, 0.9), eps=1e-3),
        lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.5, 0.9), eps=1e-3),
    ),
    (
        "Adam, decay in the gradient",
        lambda: Adam(0.1, weight_decay=0.3),
        lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.3),
    ),
    ("AdamW, defaults", lambda: AdamW(1e-3), lambda p: torch.optim.AdamW(p, lr=1e-3)),
    (
        "AdamW, much decay",
        lambda: AdamW(0.1, (0.8, 0.99), 1e-6, 0.5),
        lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.5),
    ),
]


@pytest.mark.parametrize("loss_name", ["bowl", "classifier"])
@pytest.mark.parametrize(("ours", "theirs"), [row[1:] for row in SETTINGS], ids=[row[0] for row in SETTINGS])
def test_every_optimizer_equals_torchs_over_ten_steps(ours: Any, theirs: Any, loss_name: str) -> None:
    loss = _losses()[loss_name]
    theirs_weight = nn.Parameter(_random(2, 3, seed=3))
    start = theirs_weight.detach().clone()

    def gradient(weight: Tensor) -> Tensor:
        copy = weight.clone().requires_grad_()
        return torch.autograd.grad(loss(copy), copy)[0]

    path = descend(ours(), gradient, start, STEPS)
    optimizer = theirs([theirs_weight])
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss(theirs_weight).backward()
        optimizer.step()
        torch.testing.assert_close(path[step], theirs_weight.detach(), rtol=1e-13, atol=1e-14)
    assert not torch.equal(path[-1], path[0])


def test_settings_reach_the_formula() -> None:
    """Each setting changes the result, so the parity above is not blind to it."""
    g = torch.tensor([0.3, -2.0], dtype=torch.float64)
    kinds: list[Callable[[], optimizers.Optimizer]] = []
    kinds += [lambda: SGD(0.1), lambda: SGD(0.1, 0.9), lambda: Adam(0.1), lambda: Adam(0.1, (0.8, 0.9))]
    kinds += [lambda: Adam(0.1, eps=0.1), lambda: Adam(0.1, weight_decay=0.5), lambda: AdamW(0.1, weight_decay=0.5)]
    ends = [descend(kind(), lambda w: g * w + 0.4, torch.ones(2, dtype=torch.float64), 3)[-1] for kind in kinds]
    for n, end in enumerate(ends):
        assert all(not torch.allclose(end, other, rtol=1e-9) for other in ends[:n])


def test_loss_and_gradient_equal_torchs() -> None:
    logits, labels = 5 * _random(20, 4), torch.arange(20) % 4
    leaf = logits.clone().requires_grad_()
    expected = nn.functional.cross_entropy(leaf, labels)
    expected.backward()
    torch.testing.assert_close(optimizers.cross_entropy(logits, labels), expected.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(optimizers.cross_entropy_gradient(logits, labels), leaf.grad, rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(optimizers.softmax(logits), logits.softmax(-1), rtol=1e-13, atol=0)


def test_the_loss_survives_large_logits_and_begins_at_ln_2() -> None:
    huge = torch.tensor([[1000.0, 0.0], [-1000.0, 0.0]])
    assert optimizers.cross_entropy(huge, torch.tensor([0, 0])).item() == 500
    assert optimizers.cross_entropy(torch.zeros(7, 2), torch.zeros(7, dtype=torch.long)).item() == pytest.approx(
        math.log(2)
    )


def test_a_step_that_overflows_ends_the_path() -> None:
    path = descend(SGD(1e6), lambda w: w**3, torch.tensor([10.0]), 30)
    assert path.isfinite().all() and path[-1] == path[-2]


@pytest.mark.parametrize("settings", [{}, {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}])
def test_every_parameter_of_bert_is_counted_by_a_formula(settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(**settings))
    counted = anatomy.count_by_kind(model)
    assert counted == anatomy.count_by_formula(model.config)
    assert sum(counted.values()) == sum(parameter.numel() for parameter in model.parameters())


def test_what_is_saved_for_backward_is_counted_without_the_weights() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 4, bias=False)

        def forward(self, x: Tensor) -> Any:
            class Output:
                loss = self.linear(x).relu().sum()

            return Output

    kept = memory.saved_for_backward(Layer(), {"x": torch.ones(3, 8)})  # type: ignore[arg-type]
    assert kept == 4 * (3 * 8 + 3 * 4)  # the input of the product, and the output of relu


def test_the_result_file_holds_what_the_page_says() -> None:
    found = results.read("optimizers")
    assert found["command"] == study_optimizers.COMMAND
    totals = found["counts"]["rows"][-1]
    assert (totals["minilm"], totals["bert"]) == (22_713_986, 109_483_778)
    formulas = {row["kind"]: (row["minilm"], row["bert"]) for row in found["counts"]["rows"][:-1]}
    minilm = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    tables = [anatomy.count_by_formula(config) for config in (minilm, BertConfig())]
    assert formulas == {kind: (tables[0][kind], tables[1][kind]) for kind in anatomy.FORMULAS}

    best = {row["title"]: row for row in found["tweets"]["best"]}
    rates = {title: row["learning_rate"] for title, row in best.items()}
    assert rates["gradient descent"] == pytest.approx(10 * rates["momentum 0.9"])
    assert rates["gradient descent"] > 10 * rates["Adam"]
    losses = [row["validation_loss"] for row in best.values()]
    assert max(losses) - min(losses) < 0.02, "each gets to almost the same place"
    minimum = found["tweets"]["minimum"]
    assert minimum["train"]["loss"] < 1e-3 and minimum["validation"]["loss"] > 1

    large, small = (found["decay"]["rows"][0][key] for key in ("large", "small"))
    assert large > 0.95 and small < 0.3, "decay in Adam's gradient depends on the noise"
    assert all(abs(found["decay"]["rows"][1][key] - found["decay"]["formula"]) < 0.01 for key in ("large", "small"))

    assert all(row["loss"] < found["valleys"]["highest"] / 2 for row in found["valleys"]["rows"])
    assert [row["bytes"] for row in found["memory"]["states"]] == pytest.approx([0, 4, 8, 8], abs=0.01)
    full, lora, head = found["memory"]["rows"]
    assert lora["activations"] > 0.5 * full["activations"] > 100 * head["activations"]

    tuning = found["fine_tuning"]
    runs = {(run["learning_rate"], run["seed"]) for run in tuning["runs"]}
    wanted = {(rate, seed) for rate in study_optimizers.TUNING_RATES for seed in study_optimizers.TUNING_SEEDS}
    assert runs == wanted, "the study is not complete"
    slow, right, fast = (row["accuracy"] for row in tuning["rows"])
    assert right > 0.9 and slow < tuning["majority"] + 0.05 and fast < right - 0.1
