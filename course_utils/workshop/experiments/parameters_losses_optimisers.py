"""Everything that chapter 2 measures, one command: `python -m course_utils study-optimizers`.

Parameters by kind, optimisers on a bowl and on a small real task, what weight decay does, where training ends, what a
learning rate does to fine-tuning, and what training holds in memory. Each part is written to
`book/results/optimizers.json` as soon as it is done, and a killed study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import torch
import transformers
from datasets import DatasetDict
from torch import Tensor, nn

from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation import results
from course_utils.evaluation.intervals import mean_and_spread
from course_utils.evaluation.metrics import majority_accuracy
from course_utils.methods import FullConfig, HeadOnlyConfig, LoRAConfig, MethodConfig, count_parameters, inject
from course_utils.models.anatomy import FORMULAS, count_by_kind
from course_utils.models.backbones import load_classifier
from course_utils.training.config import TrainingConfig
from course_utils.training.linear import BATCH_SIZE, EPOCHS, judge, sentence_vectors, train_linear
from course_utils.training.loop import fit
from course_utils.training.memory import saved_for_backward
from course_utils.training.optimizers import SGD, Adam, AdamW, Optimizer, descend
from course_utils.workshop.experiments import store

COMMAND = "python -m course_utils study-optimizers"
SEEDS = (0, 1, 2, 3, 4)

#: title → the optimiser at a learning rate
OPTIMIZERS: dict[str, Callable[[float], Optimizer]] = {
    "gradient descent": SGD,
    "momentum 0.9": lambda lr: SGD(lr, momentum=0.9),
    "Adam": Adam,
    "AdamW, decay 0.01": AdamW,
}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)

#: learning rates of full fine-tuning, and the seeds they are tried with
TUNING_RATES, TUNING_SEEDS = (1e-6, 1e-4, 1e-3), (0, 1, 2)


def main(arguments: list[str]) -> int:
    """Measure what is missing and write `book/results/optimizers.json`."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "counts": counts,
        "bowl": bowl,
        "decay": decay,
        "valleys": valleys,
        "memory": memory,
        "tweets": on_the_tweets,
    }
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: {', '.join(parts)}, fine_tuning")
    parser.add_argument("--again", action="store_true", help="throw away what is stored of these parts first")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - {*parts, "fine_tuning"}
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(parts)}, fine_tuning")
    chosen = options.parts or [*parts, "fine_tuning"]
    stored = results.stored("optimizers")
    content = {name: stored[name] for name in (*parts, "fine_tuning") if name in stored}
    for name in chosen:
        if options.again:
            content.pop(name, None)
        if name in parts and name not in content:
            content[name] = parts[name]()
            store.write("optimizers", COMMAND, content)
            print(f"{name}: done", flush=True)
    if "fine_tuning" in chosen:
        _fine_tuning(content)
    return 0


def counts() -> dict[str, Any]:
    """MiniLM and BERT-base by kind of parameter; BERT-base needs its architecture only, not its weights."""
    minilm, _ = load_classifier("minilm")
    with torch.device("meta"):
        bert = transformers.BertForSequenceClassification(transformers.BertConfig())
    tables = {"minilm": count_by_kind(minilm), "bert": count_by_kind(bert)}
    rows = []
    for kind, (formula, _) in FORMULAS.items():
        row: dict[str, Any] = {"kind": kind, "formula": formula}
        for model, table in tables.items():
            row |= {model: table[kind], f"{model}_share": table[kind] / sum(table.values())}
        rows.append(row)
    totals = {model: sum(table.values()) for model, table in tables.items()}
    whole = {"kind": "together", "formula": ""} | totals | {f"{model}_share": 1.0 for model in totals}
    return {"rows": [*rows, whole], **totals}


def bowl() -> dict[str, Any]:
    """Paths on f(w) = (w₁² + 20 w₂²) / 2, whose minimum is at (0, 0)."""
    curvature, start = torch.tensor([1.0, 20.0], dtype=torch.float64), torch.tensor([-4.0, 1.0], dtype=torch.float64)
    runs: list[tuple[str, str, float, Optimizer, int]] = [
        ("too small", "gradient descent", 0.005, SGD(0.005), 40),
        ("right", "gradient descent", 0.09, SGD(0.09), 40),
        ("too large", "gradient descent", 0.102, SGD(0.102), 40),
        ("momentum", "momentum 0.9", 0.02, SGD(0.02, 0.9), 40),
        ("adam", "Adam", 0.3, Adam(0.3), 40),
        ("adamw", "AdamW, decay 0.01", 0.3, AdamW(0.3), 40),
    ]
    rows = {}
    for name, title, rate, optimizer, steps in runs:
        path = descend(optimizer, lambda w: curvature * w, start, steps)
        loss = (curvature * path[-1] ** 2).sum().item() / 2
        points = [[round(value, 4) for value in point] for point in path.tolist()]
        rows[name] = {"title": title, "rate": rate, "steps": steps, "loss": loss, "path": points}
    return {"start_loss": (curvature * start**2).sum().item() / 2, "runs": rows}


def decay(steps: int = 2000, lr: float = 1e-3, weight_decay: float = 0.1) -> dict[str, Any]:
    """Weights that begin at 1 and get nothing but noise for a gradient: what does weight decay make of them?"""
    noise = torch.tensor([[10.0], [0.1]], dtype=torch.float64)
    rows = []
    for title, optimizer in (
        ("Adam, decay in the gradient", Adam(lr, weight_decay=weight_decay)),
        ("AdamW, decay apart", AdamW(lr, weight_decay=weight_decay)),
    ):
        generator = torch.Generator().manual_seed(0)
        weight = torch.ones(2, 1000, dtype=torch.float64)
        for _ in range(steps):
            weight = optimizer.step(weight, noise * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
        large, small = weight.mean(dim=1).tolist()
        rows.append({"title": title, "large": large, "small": small})
    shrunk = (1 - lr * weight_decay) ** steps
    return {"steps": steps, "learning_rate": lr, "weight_decay": weight_decay, "formula": shrunk, "rows": rows}


def _vectors() -> dict[str, tuple[Tensor, Tensor]]:
    tweets = load_sentiment("tweets")
    model, tokenizer = load_classifier("minilm")
    return {split: sentence_vectors(tweets[split], model, tokenizer) for split in ("train", "validation")}


def on_the_tweets() -> dict[str, Any]:
    """Every optimiser at every rate, five seeds each; and what lies at the minimum itself."""
    data = _vectors()
    rows = []
    for title, make in OPTIMIZERS.items():
        for rate in RATES:
            weights = [train_linear(*data["train"], make(rate), seed) for seed in SEEDS]
            row: dict[str, Any] = {"title": title, "learning_rate": rate}
            for split, (x, labels) in data.items():
                scores = [judge(weight, x, labels) for weight in weights]
                row |= {f"{split}_{key}": mean_and_spread([s[key] for s in scores])[0] for key in scores[0]}
                row[f"{split}_spread"] = mean_and_spread([s["loss"] for s in scores])[1]
            rows.append(row)
    best = [
        min((row for row in rows if row["title"] == title), key=lambda row: float(row["validation_loss"]))
        for title in OPTIMIZERS
    ]
    return {"seeds": len(SEEDS), "epochs": EPOCHS, "rows": rows, "best": best, "minimum": _minimum(data)}


def _minimum(data: dict[str, tuple[Tensor, Tensor]], iterations: int = 1000) -> dict[str, Any]:
    """Walk on towards the very lowest training loss, with L-BFGS on all texts at once, in fp64."""
    x, labels = data["train"][0].double(), data["train"][1]
    weight = torch.zeros(2, x.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_change=0)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(x @ weight.T, labels)
        value.backward()
        return value

    optimizer.step(loss)
    found = weight.detach()
    return {split: judge(found, vectors.double(), labels) for split, (vectors, labels) in data.items()}


def valleys(width: int = 16, steps: int = 600) -> dict[str, Any]:
    """A curve with two valleys, and a small network on the tweets that ends elsewhere from every start."""
    curve = {}
    for name, start in (("left", -1.7), ("right", 1.7)):
        path = descend(SGD(0.01), lambda w: 4 * w**3 - 4 * w + 0.5, torch.tensor([start], dtype=torch.float64), 100)
        points = [round(value, 4) for value in path.squeeze(1).tolist()]
        curve[name] = {"path": points, "end": points[-1], "loss": _two_valleys(points[-1])}

    data = _vectors()
    (x, labels), (x_validation, labels_validation) = ((vectors[:, :-1], labels) for vectors, labels in data.values())
    networks, rows = [], []
    for seed in SEEDS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = nn.Sequential(nn.Linear(x.shape[1], width), nn.Tanh(), nn.Linear(width, 2))
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x), labels)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = (network(x_validation).argmax(1) == labels_validation).double().mean().item()
            rows.append({"seed": str(seed), "loss": nn.functional.cross_entropy(network(x), labels).item()})
        rows[-1]["validation_accuracy"] = accuracy
        networks.append(nn.utils.parameters_to_vector(network.parameters()).detach())

    for row, other in zip(rows, networks, strict=True):
        row["distance"] = ((other - networks[0]).norm() / networks[0].norm()).item()
    between = []
    for other in networks[1:]:
        line = []
        for share in torch.linspace(0, 1, 21).tolist():
            nn.utils.vector_to_parameters((1 - share) * networks[0] + share * other, network.parameters())
            with torch.no_grad():
                line.append(round(nn.functional.cross_entropy(network(x), labels).item(), 4))
        between.append(line)
    highest = max(max(line) for line in between)
    return {"curve": curve, "rows": rows, "between": between, "highest": highest, "weights": len(networks[0])}


def _two_valleys(w: float) -> float:
    """f(w) = w⁴ − 2 w² + w / 2, with a deep valley on the left and a shallow one on the right."""
    return w**4 - 2 * w**2 + w / 2


def memory(length: int = 128) -> dict[str, Any]:
    """Bytes of weights, gradients, optimiser state and activations for one training step of MiniLM, in fp32."""
    ways: dict[str, MethodConfig] = {
        "full fine-tuning": FullConfig(),
        "LoRA, query and value": LoRAConfig(rank=8, alpha=16),
        "head only": HeadOnlyConfig(),
    }
    rows, states = [], []
    for title, config in ways.items():
        model, tokenizer = load_classifier("minilm")
        inject(model, config)
        count = count_parameters(model)
        tweets = make_loader(load_sentiment("tweets")["train"], tokenizer, BATCH_SIZE, shuffle=True)
        batch = next(iter(tweets))
        ids = torch.randint(1000, 20000, (BATCH_SIZE, length), generator=torch.Generator().manual_seed(0))
        long = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": batch["labels"]}
        row: dict[str, Any] = {"title": title, "trainable": count.trainable}
        row |= {"weights": _mb(model.parameters()), "activations": saved_for_backward(model, batch) / 1e6}
        row["activations_long"] = saved_for_backward(model, long) / 1e6
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        row["gradients"] = _mb(parameter.grad for parameter in trained if parameter.grad is not None)
        kinds: dict[str, torch.optim.Optimizer] = {
            "gradient descent": torch.optim.SGD(trained, lr=0.0),
            "momentum": torch.optim.SGD(trained, lr=0.0, momentum=0.9),
            "Adam": torch.optim.Adam(trained, lr=0.0),
            "AdamW": torch.optim.AdamW(trained, lr=0.0),
        }
        for name, optimizer in kinds.items():
            optimizer.step()
            kept = [value for state in optimizer.state.values() for value in state.values()]
            size = _mb(value for value in kept if isinstance(value, Tensor))
            if title == "full fine-tuning":
                states.append({"title": name, "megabytes": size, "bytes": 1e6 * size / count.trainable})
        row["state"] = size  # of the last one, AdamW
        row["total"] = sum(row[key] for key in ("weights", "gradients", "state", "activations"))
        row["total_long"] = row["total"] - row["activations"] + row["activations_long"]
        rows.append(row)
    tokens = batch["input_ids"].shape[1]
    return {"texts": BATCH_SIZE, "tokens": tokens, "tokens_long": length, "states": states, "rows": rows}


def _mb(tensors: Any) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors)) / 1e6


def _fine_tuning(content: dict[str, Any]) -> None:
    """Full fine-tuning of MiniLM at three learning rates, one epoch, no warm-up; writes after each run."""
    tweets = load_sentiment("tweets")
    runs: list[dict[str, Any]] = content.get("fine_tuning", {}).get("runs", [])
    labels = [list(tweets[split]["label"]) for split in ("train", "validation")]
    for seed in TUNING_SEEDS:
        for rate in TUNING_RATES:
            if any((run["learning_rate"], run["seed"]) == (rate, seed) for run in runs):
                continue
            runs.append(_fine_tune_once(tweets, rate, seed))
            part = {"seeds": len(TUNING_SEEDS), "majority": majority_accuracy(*labels)}
            content["fine_tuning"] = {**part, "runs": runs, "rows": _summary(runs)}
            store.write("optimizers", COMMAND, content)
            print(f"learning rate {rate:g}, seed {seed}: {runs[-1]['accuracy']:.1%}", flush=True)


def _fine_tune_once(tweets: DatasetDict, rate: float, seed: int) -> dict[str, Any]:
    model, tokenizer = load_classifier("minilm", seed=seed)
    inject(model, FullConfig())
    train = make_loader(tweets["train"], tokenizer, BATCH_SIZE, shuffle=True, seed=seed)
    validation = make_loader(tweets["validation"], tokenizer, 64)
    settings = TrainingConfig(learning_rate=rate, epochs=1, schedule="constant", warmup=0, seed=seed)
    history = fit(model, train, validation, settings)
    losses, end = [row["loss"] for row in history.steps], history.evaluations[-1]
    return {
        "learning_rate": rate,
        "seed": seed,
        "first_loss": losses[0],
        "last_losses": sum(losses[-10:]) / 10,
        "highest_loss": max(losses),
        "validation_loss": end["loss"],
        "accuracy": end["accuracy"],
    }


def _summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for rate in TUNING_RATES:
        found = [run for run in runs if run["learning_rate"] == rate]
        if found:
            row = {"learning_rate": rate, "low": min(run["accuracy"] for run in found)}
            row["high"] = max(run["accuracy"] for run in found)
            for key in ("first_loss", "last_losses", "validation_loss", "accuracy"):
                row[key] = math.fsum(run[key] for run in found) / len(found)
            rows.append(row)
    return rows
