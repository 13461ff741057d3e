"""Many adapters on one base, and a language model; parts of `study-serving`."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from course_utils.checkpoints import load, save
from course_utils.data.instructions import answer, question
from course_utils.data.splits import load_sentiment
from course_utils.evaluation.timing import Run, in_turn
from course_utils.methods import LoRAConfig, MethodConfig, count_parameters, inject, merge, trainable_parameters
from course_utils.methods.virtual_tokens import cache_name
from course_utils.models.backbones import load_causal_lm, load_classifier
from course_utils.models.chat import encode_prompt
from course_utils.serving.mixed_batches import MixedLoRA
from course_utils.serving.switching import Adapters

ADAPTERS = (1, 2, 4, 8, 16, 32)
SERVED = (1, 10, 100, 1000)
Batch = dict[str, torch.Tensor]


def filled(model: nn.Module, config: MethodConfig, seed: int = 0) -> nn.Module:
    """The model with a method whose new weights are random and not small, as after a training."""
    inject(model, config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def measure_adapters(rounds: int) -> dict[str, Any]:
    """The memory of N adapters and of N merged models; how long it takes to switch, and to load from disk."""
    model, _ = load_classifier()
    model_mb = 4 * count_parameters(model).total / 1e6  # base and head, as it is after merging
    count = count_parameters(filled(model, LoRAConfig()))
    base_mb, adapter_mb = 4 * (count.total - count.trainable) / 1e6, 4 * count.trainable / 1e6
    with TemporaryDirectory() as temporary:
        folders = _folders(2, Path(temporary))
        fresh, _ = load_classifier()
        adapters = Adapters(fresh)
        for name, folder in folders.items():
            adapters.add(name, folder)
        switching = in_turn({name: partial(adapters.use, name) for name in folders}, rounds)
        waiting = iter([load_classifier()[0] for _ in range(5)])
        loading = in_turn({"load": lambda: load(next(waiting), folders["0"])}, 3)
    return {
        "adapter_mb": adapter_mb,
        "base_mb": base_mb,
        "served": [{"n": n, "models_mb": n * model_mb, "adapters_mb": base_mb + n * adapter_mb} for n in SERVED],
        "switch_ms": float(np.median(np.concatenate(list(switching.values())))),
        "load_ms": float(np.median(loading["load"])),
    }


def _folders(n: int, place: Path) -> dict[str, Path]:
    return {str(i): save(filled(load_classifier(seed=i)[0], LoRAConfig(), seed=i), place / str(i)) for i in range(n)}


def measure_mixed(many: Batch, rounds: int) -> dict[str, Any]:
    """A batch of 32 texts that want 1 to 32 adapters, in three ways that give equal logits."""
    texts = len(many["input_ids"])
    with TemporaryDirectory() as temporary:
        folders = _folders(max(ADAPTERS), Path(temporary))
        mixed, switched = MixedLoRA(load_classifier()[0], folders), Adapters(load_classifier()[0])
        for name, folder in folders.items():
            switched.add(name, folder)
        theirs = _peft(folders)
        switched.model.eval()
        merged = merge(load(load_classifier()[0], folders["0"])).eval()

        def in_groups(names: Sequence[str]) -> SequenceClassifierOutput:
            logits = torch.zeros(texts, 2)
            for name in dict.fromkeys(names):
                switched.use(name)
                rows = [row for row, wanted in enumerate(names) if wanted == name]
                logits[rows] = switched.model(**{key: value[rows] for key, value in many.items()}).logits
            return SequenceClassifierOutput(logits=logits)

        rows, differences = [], []
        for n in ADAPTERS:
            names = [str(text % n) for text in range(texts)]
            runs: dict[str, Run] = {
                "ours": partial(mixed, names, **many),
                "peft": partial(theirs, **many, adapter_names=names),
                "groups": partial(in_groups, names),
                "merged": partial(merged, **many),
            }
            logits = {name: run().logits for name, run in runs.items() if name != "merged"}
            scale = logits["groups"].abs().max()
            differences += [float((logits["groups"] - one).abs().max() / scale) for one in logits.values()]
            times = in_turn(runs, max(3, rounds // 2))
            rows.append({"adapters": n} | {f"{name}_ms": float(np.median(values)) for name, values in times.items()})
    return {"texts": texts, "rows": rows, "difference": max(differences)}


def _peft(folders: Mapping[str, Path]) -> Any:
    """peft's model with all adapters of these folders."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers' notes to the authors of peft
        (first, folder), *others = folders.items()
        model: Any = PeftModel.from_pretrained(load_classifier()[0], folder, adapter_name=first)
        for name, folder in others:
            model.load_adapter(folder, adapter_name=name)
    return model.eval()


def measure_language(rounds: int, new_tokens: int = 24) -> dict[str, Any]:
    """A Llama model: tokens a second with LoRA beside it and merged, and what a stored prefix saves."""
    tweets = load_sentiment()["train"]
    models: dict[str, Any] = {}
    for name in ("apart", "merged"):
        model, tokenizer = load_causal_lm()
        models[name] = filled(model, LoRAConfig())
    merge(models["merged"])
    ids = torch.tensor([encode_prompt(tokenizer, question(tweets["text"][0]))])
    length: dict[str, Any] = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "do_sample": False}
    length |= {"attention_mask": torch.ones_like(ids), "pad_token_id": tokenizer.pad_token_id}
    runs = {name: partial(model.generate, ids, **length) for name, model in models.items()}
    times = in_turn(runs, rounds, warm_up=1)
    return {
        "new_tokens": new_tokens,
        **{f"{name}_per_second": 1000 * new_tokens / float(np.median(values)) for name, values in times.items()},
        "ratio": float(np.median(times["apart"] / times["merged"])),
        **_stored_prefix(models["merged"], tokenizer, tweets, rounds),
    }


def _stored_prefix(model: Any, tokenizer: Any, tweets: Any, rounds: int) -> dict[str, Any]:
    """The first token after eight examples and a question: all computed, or with the examples' keys and values kept."""
    shots = [
        message
        for text, rating in zip(tweets["text"][1:9], tweets["rating"][1:9], strict=True)
        for message in (*question(text), {"role": "assistant", "content": answer(rating)})
    ]
    asked = [encode_prompt(tokenizer, [*shots, *question(tweets["text"][place])]) for place in (10, 11)]
    same = next(i for i, (one, other) in enumerate(zip(*asked, strict=False)) if one != other)
    whole = torch.tensor(asked[:1])
    name = cache_name(model)
    stored = model(whole[:, :same], use_cache=True)[name]

    def continued() -> torch.Tensor:
        # A copy: the model writes the keys and values of the question behind those of the prefix.
        logits: torch.Tensor = model(whole[:, same:], **{name: deepcopy(stored)}).logits[:, -1]
        return logits

    def anew() -> torch.Tensor:
        logits: torch.Tensor = model(whole).logits[:, -1]
        return logits

    times = in_turn({"anew": anew, "continued": continued}, rounds, warm_up=1)
    expected = anew()
    return {
        "prefix_tokens": same,
        "prompt_tokens": whole.shape[1],
        "anew_ms": statistics.median(times["anew"]),
        "continued_ms": statistics.median(times["continued"]),
        "prefix_difference": float((continued() - expected).abs().max() / expected.abs().max()),
    }
