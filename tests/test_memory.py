"""The memory calculator's arithmetic: against the models themselves, and against what autograd really keeps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, RobertaConfig, RobertaModel

from course_utils.methods import IA3Config, LoRAConfig, count_parameters, inject
from course_utils.models.backbones import load_classifier
from course_utils.training.memory import MEMORY_METHODS, PRECISIONS, SHAPES, Shape, trained_weights, training_memory


def llama(**sizes: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**sizes))  # type: ignore[arg-type]


BUILDERS = {
    "minilm": lambda: BertModel(
        BertConfig(num_hidden_layers=6, hidden_size=384, intermediate_size=1536, num_attention_heads=12)
    ),
    "bert-base": lambda: BertModel(BertConfig()),
    "roberta-large": lambda: RobertaModel(
        RobertaConfig(
            vocab_size=50265, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
            max_position_embeddings=514, type_vocab_size=1,
        )
    ),
    "smollm2-135m": lambda: llama(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "llama-2-7b": lambda: llama(vocab_size=32000, intermediate_size=11008),
    "llama-3.1-8b": lambda: llama(vocab_size=128256, intermediate_size=14336, num_key_value_heads=8),
    "llama-2-70b": lambda: llama(
        vocab_size=32000, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_the_shape_is_that_of_the_model(name: str) -> None:
    with torch.device("meta"):
        model = BUILDERS[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) == SHAPES[name].total
    matrices = [
        module for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and not path.endswith(("pooler.dense", "lm_head"))
    ]  # fmt: skip
    assert sum(module.weight.numel() for module in matrices) == SHAPES[name].in_matrices


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("lora-qv", LoRAConfig(rank=4)),
        ("lora-all", LoRAConfig(rank=4, targets="all-linear")),
        ("ia3", IA3Config()),
    ],
)
def test_trained_weights_are_those_of_the_course(method: str, config: LoRAConfig) -> None:
    model, _ = load_classifier("minilm")
    count = count_parameters(inject(model, config))
    pooler = 4 * (384 + 384) if method == "lora-all" else 0  # BERT's pooler is a matrix too, outside its layers
    assert trained_weights(SHAPES["minilm"], method, 4) == count.trainable - count.head - pooler


def test_full_fine_tuning_takes_sixteen_bytes_a_weight_and_lora_far_less() -> None:
    """The sentence of the ZeRO paper; and a hand calculation for LoRA on the default model."""
    shape = SHAPES["llama-2-7b"]
    for precision in ("float32", "mixed"):
        full = training_memory(shape, "full", precision)
        assert full.total - full.activations == 16 * shape.total
    small = training_memory(SHAPES["minilm"], "lora-qv", "float32", batch=1, length=1, rank=8)
    assert small.trained == 73_728
    assert (small.weights, small.gradients, small.optimizer) == (4 * (22_713_216 + 73_728), 294_912, 589_824)


def test_activations_come_to_34_bytes_times_the_width_in_16_bits() -> None:
    """Korthikanti et al. 2022, equation 2 without its attention term."""
    got = training_memory(SHAPES["bert-base"], "full", "mixed", batch=3, length=5).activations
    assert got == 12 * 3 * 5 * 768 * 34
    kept = training_memory(SHAPES["bert-base"], "full", "mixed", batch=3, length=5, checkpointing=True).activations
    assert kept == 12 * 3 * 5 * 768 * 2 + 3 * 5 * 768 * 34


def test_nf4_takes_4_127_bits_in_the_matrices() -> None:
    shape = Shape("all matrix", 1, 64, 256, 4 * 64 * 64 + 2 * 64 * 256)
    assert shape.in_matrices == shape.total
    got = training_memory(shape, "ia3", "nf4")
    assert got.weights * 8 == pytest.approx(shape.total * 4.126953125 + 16 * got.trained)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "full", "precision": "nf4"}, "cannot be trained"),
        ({"method": "lara"}, "unknown method 'lara'; choose from full"),
        ({"precision": "int3"}, "unknown precision 'int3'; choose from float32"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"batch": 0}, "batch and length"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        training_memory(SHAPES["minilm"], **settings)  # type: ignore[arg-type]


def kept_by_autograd(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, the model's own weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("method", ["full", "lora-qv", "lora-all", "ia3"])
def test_the_rule_is_near_what_autograd_keeps(method: str) -> None:
    model, _ = load_classifier("minilm")
    configs = {
        "lora-qv": LoRAConfig(rank=8),
        "lora-all": LoRAConfig(rank=8, targets="all-linear"),
        "ia3": IA3Config(),
    }
    if method in configs:
        inject(model, configs[method])
    for name, module in model.named_modules():  # fused attention on a CPU knows no dropout
        if name.endswith("attention.self"):
            module.dropout.p = 0.0
    ids = torch.randint(1000, 20_000, (8, 128), generator=torch.Generator().manual_seed(0))
    kept = kept_by_autograd(model.train(), {"input_ids": ids, "labels": torch.zeros(8, dtype=torch.long)})
    rule = training_memory(SHAPES["minilm"], method, "float32", batch=8, length=128).activations
    assert 0.75 < kept / rule < 1.25  # what book/calculator.md says


def test_every_choice_has_a_name() -> None:
    assert all([*MEMORY_METHODS.values(), *PRECISIONS.values(), *(shape.title for shape in SHAPES.values())])
