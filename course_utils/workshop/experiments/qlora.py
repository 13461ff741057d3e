"""What 4 bits cost: `python -m course_utils study-quantization` writes `book/results/quantization.json`.

* For the encoder and for the language model: bits for each weight of the quantised layers, memory of the whole model,
  error of the weights and of what the model computes, and the language model's loss on sentences of the news.
* Merging: QLoRA is trained on the tweets, judged as it is, merged in full precision, and merged into 4 bits again. The
  test split is only looked at here; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation.intervals import mean_and_spread
from course_utils.evaluation.prediction import predict
from course_utils.methods import LoRALinear, NF4Linear, QLoRAConfig, find_targets, inject, merge, quantize
from course_utils.methods.quantization import dequantize_int8_absmax, quantize_int8_absmax
from course_utils.models.backbones import DEFAULT_BACKBONE, DEFAULT_LANGUAGE_MODEL, load_causal_lm, load_classifier
from course_utils.training.config import TrainingConfig
from course_utils.training.loop import fit
from course_utils.workshop.experiments import store

COMMAND = "python -m course_utils study-quantization"
SEEDS = (0, 1, 2)
TEXTS = 64  # on which the error of the output is measured
LEARNING_RATE = 1e-3

Texts = dict[str, torch.Tensor]


def main(arguments: list[str]) -> int:
    """Measure everything; the models first."""
    argparse.ArgumentParser(prog=COMMAND, description=__doc__).parse_args(arguments)
    content: dict[str, Any] = {"texts": TEXTS, "models": {}}
    for name, title, load, domain in (
        (DEFAULT_BACKBONE, "MiniLM", load_classifier, "tweets"),
        (DEFAULT_LANGUAGE_MODEL, "SmolLM2-135M", load_causal_lm, "news"),
    ):
        content["models"][name] = {"title": title, "rows": measure_model(load, domain)}
        print(title, *content["models"][name]["rows"], sep="\n  ", flush=True)
    content["merging"] = measure_merging()
    print(*content["merging"]["rows"], sep="\n", flush=True)
    store.write("quantization", COMMAND, content)
    return 0


# --- a model in several formats -------------------------------------------------------------------------------------


def round_to_int8(model: nn.Module) -> nn.Module:
    """Round the weights of the layers that `quantize` takes to 8 bits, one absmax for each row, in place."""
    for layer in find_targets(model, "all-linear").values():
        layer.weight.data = dequantize_int8_absmax(*quantize_int8_absmax(layer.weight.data))
    return model


FORMATS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "float32": lambda model: model,
    "int8, one absmax a row": round_to_int8,
    "NF4": lambda model: quantize(model, double=False),
    "NF4, double quantisation": quantize,
}


def measure_model(load: Callable[[], tuple[Any, PreTrainedTokenizerBase]], domain: str) -> list[dict[str, Any]]:
    """One row for each format."""
    rows = []
    reference, tokenizer = load()
    layers = find_targets(reference.eval(), "all-linear")
    batch = tokenizer(list(load_sentiment(domain)["train"]["text"][:TEXTS]), padding=True, return_tensors="pt")
    expected, _ = _states_and_loss(reference, batch)
    for title, change in FORMATS.items():
        model = change(load()[0]).eval()
        changed = find_targets(model, "all-linear")
        states, loss = _states_and_loss(model, batch)
        errors = [_relative(changed[name].weight, layer.weight) for name, layer in layers.items()]
        rows.append(
            {
                "title": title,
                "bits": _bits(changed) if title != "int8, one absmax a row" else _bits_of_int8(changed),
                "weights_in_layers": sum(layer.weight.numel() for layer in layers.values()),
                "megabytes": _megabytes(model, changed, title),
                "weight_error": sum(errors) / len(errors),
                "output_error": _relative(states, expected),
            }
            | ({} if loss is None else {"loss": loss})
        )
    return rows


@torch.no_grad()
def _states_and_loss(model: Any, batch: Texts) -> tuple[torch.Tensor, float | None]:
    """The last hidden states of all real tokens, and a language model's mean loss."""
    real = batch["attention_mask"].bool()
    states = model.base_model(**batch).last_hidden_state
    output = model.get_output_embeddings()
    if output is None:
        return states[real], None
    labels = batch["input_ids"].masked_fill(~real, -100)[:, 1:]
    first = ~real[:, :-1]  # what the padding on the left would predict does not count
    logits = output(states[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.masked_fill(first, -100).flatten())
    return states[real], loss.item()


def _bits(layers: dict[str, Any]) -> float:
    """Bits for each weight, over all layers."""
    stored = sum(
        layer.bits_per_parameter * layer.packed_parameters if isinstance(layer, NF4Linear) else 8 * layer.weight.nbytes
        for layer in layers.values()
    )
    return float(stored / sum(layer.weight.numel() for layer in layers.values()))


def _bits_of_int8(layers: dict[str, Any]) -> float:
    """Eight for each weight, and a float32 for each row."""
    weights = sum(layer.weight.numel() for layer in layers.values())
    return float(8 + 32 * sum(len(layer.weight) for layer in layers.values()) / weights)


def _megabytes(model: nn.Module, layers: dict[str, Any], title: str) -> float:
    """What the model's parameters and buffers take; tied ones count once."""
    stored = {id(tensor): tensor.nbytes for tensor in chain(model.parameters(), model.buffers())}
    total = sum(stored.values())
    if title == "int8, one absmax a row":  # is only rounded here, and kept in float32
        weights = sum(layer.weight.numel() for layer in layers.values())
        total += round(weights * (_bits_of_int8(layers) / 8 - 4))
    return total / 1e6


def _relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.detach() - expected.detach()).norm() / expected.detach().norm())


# --- merging into 4 bits --------------------------------------------------------------------------------------------


def measure_merging() -> dict[str, Any]:
    """Train, merge, and quantise again, for each seed; the mean of what came out."""
    runs = [_merge_once(seed) for seed in SEEDS]
    titles = ("4 bits and LoRA beside them", "merged, float32", "merged, and 4 bits again")
    rows = []
    for number, title in enumerate(titles):
        accuracies = [run["rows"][number]["accuracy"] for run in runs]
        mean, spread = mean_and_spread(accuracies)
        rows.append(
            {
                "title": title,
                "accuracy": {"mean": mean, "spread": spread, "seeds": accuracies},
                "output_error": mean_and_spread([run["rows"][number]["output_error"] for run in runs])[0],
                "flipped": mean_and_spread([run["rows"][number]["flipped"] for run in runs])[0],
            }
        )
    sizes = {key: mean_and_spread([run[key] for run in runs])[0] for key in ("update_size", "rounding_size", "back")}
    return {"seeds": list(SEEDS), "learning_rate": LEARNING_RATE, "epochs": 1, "rows": rows, **sizes}


def _merge_once(seed: int) -> dict[str, Any]:
    tweets = load_sentiment("tweets")
    model, tokenizer = load_classifier(seed=seed)
    inject(model, QLoRAConfig(rank=8, alpha=16), seed=seed)
    train = make_loader(tweets["train"], tokenizer, 32, shuffle=True, seed=seed)
    validation, test = (make_loader(tweets[split], tokenizer, 64) for split in ("validation", "test"))
    fit(model, train, validation, TrainingConfig(learning_rate=LEARNING_RATE, epochs=1, seed=seed))
    labels, expected = predict(model, test)
    adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
    with torch.no_grad():
        updates = [(m.delta().norm() / m.base.weight.norm()).item() for m in adapted.values()]
    codes = {name: module.base.get_buffer("codes").clone() for name, module in adapted.items()}
    rows = [_judge(labels, expected, expected)]
    merge(model)
    full = {name: layer.weight.detach().clone() for name, layer in find_targets(model, "all-linear").items()}
    rows.append(_judge(labels, _logits(model, test), expected))
    quantize(model)
    rounded = find_targets(model, "all-linear")
    rows.append(_judge(labels, _logits(model, test), expected))
    roundings = [_relative(rounded[name].weight, weight) for name, weight in full.items()]
    back = [_share_of_equal_codes(codes[name], rounded[name].get_buffer("codes")) for name in codes]
    return {
        "rows": rows,
        "update_size": sum(updates) / len(updates),
        "rounding_size": sum(roundings) / len(roundings),
        "back": sum(back) / len(back),
    }


def _share_of_equal_codes(old: torch.Tensor, new: torch.Tensor) -> float:
    """How many of the 4-bit codes, two in a byte, are what they were."""
    changed = old ^ new
    return float(torch.stack((changed & 0xF0, changed & 0x0F)).eq(0).float().mean())


def _logits(model: nn.Module, loader: DataLoader) -> Any:
    return predict(model, loader)[1]


def _judge(labels: Any, logits: Any, expected: Any) -> dict[str, float]:
    answers = logits.argmax(1)
    return {
        "accuracy": float((answers == labels).mean()),
        "output_error": _relative(torch.from_numpy(logits), torch.from_numpy(expected)),
        "flipped": float((answers != expected.argmax(1)).mean()),
    }
