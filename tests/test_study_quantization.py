"""What 4 bits cost: the measured facts agree with the arithmetic, and show what the QLoRA chapter says."""

from __future__ import annotations

import pytest
import torch

from course_utils.evaluation import results
from course_utils.methods import find_targets, quantize
from course_utils.models.backbones import load_classifier
from course_utils.workshop.experiments import qlora as study_quantization

FORMATS = list(study_quantization.FORMATS)


@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_bits_memory_and_errors_of_a_model(model: str) -> None:
    rows = results.read("quantization")["models"][model]["rows"]
    assert [row["title"] for row in rows] == FORMATS
    full, int8, nf4, double = rows
    assert (full["bits"], nf4["bits"]) == (32, 4.5) and full["weight_error"] == full["output_error"] == 0
    assert 8 < int8["bits"] < 8.2
    assert double["bits"] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=0.01)
    assert full["megabytes"] > int8["megabytes"] > nf4["megabytes"] > double["megabytes"]
    saved = full["weights_in_layers"] * (32 - double["bits"]) / 8 / 1e6
    assert full["megabytes"] - double["megabytes"] == pytest.approx(saved, rel=0.01)
    assert 0 < int8["weight_error"] < nf4["weight_error"] < double["weight_error"] < 0.12
    assert 0 < int8["output_error"] < nf4["output_error"]


def test_only_the_merge_into_4_bits_changes_answers() -> None:
    merging = results.read("quantization")["merging"]
    beside, merged, again = merging["rows"]
    assert beside["output_error"] == 0 and merged["output_error"] < 1e-5 and merged["flipped"] == 0
    assert again["output_error"] > 1000 * merged["output_error"]
    # Most numbers go back to the level that they stood on, and what was learnt goes with it.
    assert merging["back"] > 0.9 and merging["rounding_size"] == pytest.approx(merging["update_size"], rel=0.3)
    assert again["accuracy"]["mean"] < beside["accuracy"]["mean"] - 0.1


def test_equal_codes_are_counted_one_by_one() -> None:
    old, new = torch.tensor([0x12, 0x34, 0x56], dtype=torch.uint8), torch.tensor([0x12, 0x35, 0x67], dtype=torch.uint8)
    assert study_quantization._share_of_equal_codes(old, new) == 0.5


def test_the_memory_of_a_real_model_is_counted_once_for_tied_and_packed_weights() -> None:
    model, _ = load_classifier()
    whole = sum(parameter.nbytes for parameter in model.parameters())
    layers = find_targets(model, "all-linear")
    assert study_quantization._megabytes(model, layers, "float32") == pytest.approx(whole / 1e6, rel=0.001)
    weights = sum(layer.weight.numel() for layer in layers.values())
    packed = quantize(model, double=False)
    less = study_quantization._megabytes(packed, find_targets(packed, "all-linear"), "NF4")
    assert whole / 1e6 - less == pytest.approx(weights * 27.5 / 8 / 1e6, rel=0.001)


def test_rounding_to_int8_touches_only_the_layers_that_quantise_takes() -> None:
    model, _ = load_classifier()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    study_quantization.round_to_int8(model)
    layers = {f"{name}.weight" for name in find_targets(model, "all-linear")}
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == layers
