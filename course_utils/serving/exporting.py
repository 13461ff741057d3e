"""Write a fine-tuned model as ONNX, in float32 and in int8, with all that is needed to serve it.

`python -m course_utils export FOLDER` does it for the model that the case study chose.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from course_utils.data import cleaning
from course_utils.errors import CourseError
from course_utils.serving.runtime import MODELS, SETTINGS

_INPUTS = ("input_ids", "attention_mask")
#: How much the logits of the exported model may differ from torch's: another order of sums, nothing else.
TOLERANCE = 1e-4


class ExportError(CourseError, ValueError):
    """The model cannot be exported as it is."""


class _LogitsOnly(nn.Module):
    """The model as a function of two tensors: ONNX knows neither keywords nor transformers' outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The logits (n, classes)."""
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def export(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str | Path, review_below: float = 0.0) -> Path:
    """Write `model.onnx`, `tokenizer.json` and `settings.json`.

    Args:
        model: a classifier with two classes, **merged**: an exported model has no adapter to take out again.
        tokenizer: the backbone's, a fast one.
        folder: is created.
        review_below: the confidence below which a person should look.

    Returns:
        The folder.

    Raises:
        ExportError: a method is still in the model, or the tokenizer cannot be written as one file.
    """
    if getattr(model, "tuning", None) is not None:
        raise ExportError("a method is still in the model; call merge(model) first, and export what it returns")
    if not tokenizer.is_fast:
        raise ExportError("the tokenizer is not a fast one, so there is no tokenizer.json for it")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    example = tokenizer(["one text", "another text, a longer one"], padding=True, return_tensors="pt")
    _write_graph(model.eval(), tuple(example[name] for name in _INPUTS), target / MODELS["float32"])
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"))
    settings = {
        "labels": [name for _, name in sorted(cast(Any, model).config.id2label.items())],  # in the order of the logits
        "max_length": int(tokenizer.model_max_length),
        "pad_id": tokenizer.pad_token_id,
        "pad_token": tokenizer.pad_token,
        "cleaning": [[pattern.pattern, word] for pattern, word in cleaning.REPLACEMENTS],
        "review_below": review_below,
    }
    (target / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
    return target


def _write_graph(model: nn.Module, example: tuple[torch.Tensor, ...], path: Path) -> None:
    # Both sides of a batch may change later; without this line the model takes two texts of one length only.
    sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    loud = logging.getLogger("torch.onnx")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _LogitsOnly(model).eval(),  # a new module is in training mode, and would switch the dropout on
                example,
                str(path),
                input_names=list(_INPUTS),
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(_INPUTS, sizes),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        loud.setLevel(level)


def to_int8(folder: str | Path) -> Path:
    """Write `model.int8.onnx` beside `model.onnx`: dynamic quantisation.

    The weights of matrix products and embeddings are stored as whole numbers of 8 bits. Each output of a matrix has a
    scale of its own; with one for the whole matrix the logits were twice as far off, on validation, at the same size.
    The activations are rounded while the model runs, with a scale for each batch; hence "dynamic". No data is needed.

    Raises:
        ExportError: there is no `model.onnx`.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    source, target = (Path(folder) / MODELS[kind] for kind in ("float32", "int8"))
    if not source.is_file():
        raise ExportError(f"there is no {source}; call export() first")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a preparation that changes nothing here
    try:
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, per_channel=True)
    finally:
        root.setLevel(level)
    return target
