"""What is new in a model is trained with every method, saved and loaded, whatever its name; or the model is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import every_head
import pytest
import torch
from models import HIDDEN, LAYERS, VOCABULARY, make
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoConfig,
    BartConfig,
    BartForCausalLM,
    BartForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BrosConfig,
    BrosForTokenClassification,
    CanineConfig,
    CanineForTokenClassification,
    CLIPVisionConfig,
    DebertaConfig,
    DebertaForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LongformerConfig,
    LongformerForQuestionAnswering,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    XLMRobertaConfig,
    XLMRobertaForQuestionAnswering,
)

from course_utils.checkpoints import load, save
from course_utils.methods import (
    AdaLoRAConfig,
    BitFitConfig,
    DoRAConfig,
    FullConfig,
    HeadOnlyConfig,
    IA3Config,
    LastLayersConfig,
    LoRAConfig,
    MethodConfig,
    MethodError,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    QLoRAConfig,
    VeRAConfig,
    inject,
    quantize,
    trainable_parameters,
)
from course_utils.methods.architectures import ARCHITECTURES
from course_utils.methods.targets import find_head
from course_utils.methods.trial import one_token

ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
} | {"intermediate_size": 48, "max_position_embeddings": 40}
BART = BartConfig(
    vocab_size=VOCABULARY,
    d_model=HIDDEN,
    encoder_layers=LAYERS,
    decoder_layers=LAYERS,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=48,
    decoder_ffn_dim=48,
    max_position_embeddings=40,
)
T5 = T5Config(vocab_size=VOCABULARY, d_model=HIDDEN, d_kv=8, d_ff=48, num_layers=LAYERS, num_heads=4)
T5.decoder_start_token_id = 0
DISTIL = DistilBertConfig(
    vocab_size=VOCABULARY, dim=HIDDEN, n_layers=LAYERS, n_heads=4, hidden_dim=48, max_position_embeddings=40
)
MODERN = ModernBertConfig(**ENCODER, pad_token_id=1, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
TOKENS = torch.tensor([[5, 9, 17, 3], [8, 30, 4, 3]])


def trained(model: nn.Module) -> set[str]:
    return set(trainable_parameters(model))


# --- which modules are the head --------------------------------------------------------------------------------------

BUILDS: list[tuple[PreTrainedModel, tuple[str, ...]]] = [
    (BertForSequenceClassification(BertConfig(**ENCODER)), ("classifier",)),
    (BertForQuestionAnswering(BertConfig(**ENCODER)), ("qa_outputs",)),
    (BertForMaskedLM(BertConfig(**ENCODER)), ()),
    (DistilBertForSequenceClassification(DISTIL), ("pre_classifier", "classifier")),
    (DistilBertForMaskedLM(DISTIL), ()),  # vocab_transform stands outside the body, but is pretrained
    (DebertaForSequenceClassification(DebertaConfig(**ENCODER)), ("pooler", "classifier")),
    (DebertaV2ForSequenceClassification(DebertaV2Config(**ENCODER)), ("pooler", "classifier")),
    (BartForSequenceClassification(BART), ("classification_head",)),
    (T5ForSequenceClassification(T5), ("classification_head",)),
    (T5ForQuestionAnswering(T5), ("qa_outputs",)),  # its body is two towers beside the head
    (T5ForConditionalGeneration(T5), ()),
    (XLMRobertaForQuestionAnswering(XLMRobertaConfig(**ENCODER)), ("qa_outputs",)),  # registered before the body
]


@pytest.mark.parametrize(("model", "head"), BUILDS, ids=lambda value: type(value).__name__)
def test_the_head_by_the_build(model: PreTrainedModel, head: tuple[str, ...]) -> None:
    assert find_head(model) == head


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_head_of_every_row_of_the_table(family: str) -> None:
    from test_architectures import make_tiny

    assert find_head(make_tiny(family)) == ARCHITECTURES[family].head


@pytest.fixture
def without_pooler(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**ENCODER)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("config", [LoRAConfig(), BitFitConfig(), HeadOnlyConfig(), IA3Config()], ids=lambda c: c.name)
def test_what_the_checkpoint_lacks_is_trained_and_comes_back(
    config: MethodConfig, without_pooler: Path, tmp_path: Path
) -> None:
    def draw(seed: int) -> Any:
        torch.manual_seed(seed)
        return BertForSequenceClassification.from_pretrained(without_pooler).eval()

    model = inject(draw(1), config)
    assert model.new_modules == ("classifier", "bert.pooler.dense")
    assert {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"} <= trained(
        model
    )
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1)
    expected = model(TOKENS).logits
    assert torch.equal(load(draw(2), save(model, tmp_path / "checkpoint"))(TOKENS).logits, expected)


def test_a_pooler_from_the_checkpoint_stays_frozen(tmp_path: Path) -> None:
    make("bert").save_pretrained(tmp_path)
    model = inject(BertForSequenceClassification.from_pretrained(tmp_path), LoRAConfig())
    assert find_head(model) == ("classifier",)
    assert not {name for name in trained(model) if "pooler" in name}


def test_a_new_parameter_beside_pretrained_ones_is_refused_until_it_is_named(tmp_path: Path) -> None:
    make("bert").save_pretrained(tmp_path)
    model = BertForMaskedLM.from_pretrained(tmp_path)
    before = trained(model)
    with pytest.raises(MethodError, match=r"lacks a parameter in cls.predictions.*head=\('cls.predictions',\)"):
        inject(model, LoRAConfig())
    assert trained(model) == before
    assert "cls.predictions.transform.dense.weight" in trained(inject(model, LoRAConfig(head=("cls.predictions",))))


class NoBodyForSequenceClassification(PreTrainedModel):
    config_class = BertConfig
    base_model_prefix = "nowhere"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 2)


def test_a_task_without_a_body_is_refused_with_what_to_pass() -> None:
    model = NoBodyForSequenceClassification(BertConfig(**ENCODER))
    with pytest.raises(MethodError, match=r"\(first, last\) are the new head.*head=\('classifier',\), or head=\(\)"):
        inject(model, LoRAConfig(targets="all-linear"))
    assert trained(inject(model, LoRAConfig(targets=("first",), head=("last",)))) == {
        *("first.lora_A.weight", "first.lora_B.weight", "last.weight", "last.bias")
    }


@pytest.mark.parametrize(
    "config", [LoRAConfig(targets="all-linear"), QLoRAConfig(), BitFitConfig()], ids=lambda c: c.name
)
def test_no_method_touches_the_head(config: MethodConfig) -> None:
    for model, head in (
        (BertForQuestionAnswering(BertConfig(**ENCODER)), nn.Linear),
        (DistilBertForSequenceClassification(DISTIL), nn.Linear),
    ):
        inject(model, config)
        for name in find_head(model):
            assert type(model.get_submodule(name)) is head
            assert {f"{name}.weight", f"{name}.bias"} <= trained(model)


# --- wrappers show the layer that they wrap --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(targets="all-linear"),
        DoRAConfig(targets="all-linear"),
        VeRAConfig(targets="all-linear", rank=4),
        AdaLoRAConfig(targets="all-linear", total_steps=9, initial_steps=2, final_steps=2),
        IA3Config(keys_and_values=("k", "v"), feedforward=("wo",)),
        QLoRAConfig(),
    ],
    ids=lambda config: config.name,
)
def test_t5_runs_although_it_looks_at_a_layer_s_weight(config: MethodConfig) -> None:
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5).eval()
    bare = model(input_ids=TOKENS, labels=TOKENS).logits
    tuned: Any = inject(model, config)
    layer = tuned.encoder.block[0].layer[-1].DenseReluDense.wo
    assert torch.equal(layer.weight, layer.base.weight)
    assert layer.bias is None
    assert (layer.in_features, layer.out_features) == (48, HIDDEN)
    output = model(input_ids=TOKENS, labels=TOKENS)
    assert config.name == "QLoRA" or torch.allclose(output.logits, bare, atol=1e-6)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in trainable_parameters(model).values())


def test_a_layer_that_pytorch_never_calls_is_refused() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "block": block, "free": nn.Linear(8, 8)})
    modules = list(model.modules())
    for target, parent in (("attention.out_proj", "MultiheadAttention"), ("linear1", "TransformerEncoderLayer")):
        with pytest.raises(MethodError, match=rf"{target} stands in a {parent} of PyTorch"):
            inject(model, LoRAConfig(targets=(target,)))
        assert list(model.modules()) == modules
    assert "free.lora_A.weight" in trained(inject(model, LoRAConfig(targets=("free",))))


# --- silence ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [PromptTuningConfig(virtual_tokens=3), PTuningConfig(virtual_tokens=3), PrefixTuningConfig(virtual_tokens=3)],
    ids=lambda config: config.name,
)
def test_a_body_that_is_passed_by_is_refused_and_left_as_it_was(config: MethodConfig) -> None:
    opt = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=40,
        word_embed_proj_dim=HIDDEN,
    )
    model = OPTForCausalLM(opt)
    modules = list(model.modules())
    with pytest.raises(MethodError, match=rf"{config.name} would train .* OPTForCausalLM passes by"):
        inject(model, config)
    assert list(model.modules()) == modules
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert "tuning" not in vars(model)


@pytest.mark.parametrize(
    "model",
    [
        CanineForTokenClassification(
            CanineConfig(**ENCODER, num_hash_buckets=64)
        ),  # it reads characters, by their hashes
        ViTForImageClassification(ViTConfig(**ENCODER, image_size=32)),
        BartForCausalLM(BART),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_body_without_a_table_of_tokens_takes_no_virtual_ones(model: PreTrainedModel) -> None:
    for config in (PromptTuningConfig(virtual_tokens=3), PTuningConfig(virtual_tokens=3)):
        with pytest.raises(MethodError, match=r"is no plain encoder or decoder of text"):
            inject(model, config)
    assert not hasattr(model, "tuning")


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (BrosForTokenClassification(BrosConfig(**ENCODER)), "bbox"),
        (LongformerForQuestionAnswering(LongformerConfig(**ENCODER, attention_window=[4, 4])), "global_attention_mask"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_is_read_of_each_token_is_not_there_for_virtual_ones(model: PreTrainedModel, more: str) -> None:
    for config in (PromptTuningConfig(virtual_tokens=3), PTuningConfig(virtual_tokens=3)):
        with pytest.raises(MethodError, match=rf"reads something more of each token \({more}\)"):
            inject(model, config)


def test_a_tower_of_images_is_trained_though_a_token_does_not_reach_it() -> None:
    text = LlamaConfig(**ENCODER)
    sight = CLIPVisionConfig(**ENCODER, image_size=32, patch_size=16)
    config = LlavaConfig(text_config=text, vision_config=sight, image_token_index=7, image_seq_length=4)
    model = inject(LlavaForConditionalGeneration(config), LoRAConfig(targets="all-linear", rank=2))
    image, ids = torch.randn(1, 3, 32, 32), torch.tensor([[5, 7, 7, 7, 7, 9]])
    model(input_ids=ids, pixel_values=image).logits.sum().backward()
    seen = {n: p.grad is not None for n, p in trainable_parameters(model).items() if "vision_tower" in n}
    assert sum(seen.values()) > 10
    inject(LlavaForConditionalGeneration(config), LoRAConfig(targets=r".*vision_tower.*(q|v)_proj"))
    idle = LlavaForConditionalGeneration(config)
    idle.model.language_model.idle = nn.Linear(HIDDEN, HIDDEN)
    with pytest.raises(MethodError, match=r"would train model.language_model.idle.lora_A.weight.*passes by"):
        inject(idle, LoRAConfig(targets=("q_proj", "idle")))


class Idle(BertForSequenceClassification):
    """A BERT with a layer beside the others that no forward pass calls."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert.idle = nn.Linear(HIDDEN, HIDDEN)


def test_a_target_and_a_head_that_nothing_calls_are_refused_by_name() -> None:
    model = Idle(BertConfig(**ENCODER))
    with pytest.raises(MethodError, match=r"would train bert.idle.lora_A.weight, bert.idle.lora_B.weight, which Idle"):
        inject(model, LoRAConfig(targets=("query", "idle")))
    with pytest.raises(MethodError, match=r"would train bert.idle.weight, bert.idle.bias, which Idle passes by"):
        inject(model, LoRAConfig(head=("classifier", "bert.idle")))
    inject(model, LoRAConfig())


class Broken(BertForSequenceClassification):
    """A BERT that looks into its pooler's layer."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        assert type(self.get_submodule("bert.pooler.dense")) is nn.Linear
        return super().forward(*inputs, **named)


def test_a_forward_pass_that_fails_with_the_method_is_refused() -> None:
    model = Broken(BertConfig(**ENCODER))
    with pytest.raises(MethodError, match=r"Broken computes a token without LoRA and fails with it: AssertionError"):
        inject(model, LoRAConfig(targets="all-linear"))
    assert model(TOKENS).logits.shape == (2, 2)
    inject(model, LoRAConfig())


@pytest.mark.parametrize("training", [True, False])
def test_the_trial_leaves_no_trace(training: bool) -> None:
    model = make("bert", dropout=0.5).train(training)
    model.bert.encoder.eval()  # a part in another mode than the whole
    state, buffers = torch.get_rng_state(), {name: buffer.clone() for name, buffer in model.named_buffers()}
    inject(model, HeadOnlyConfig())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training == model.bert.pooler.training == training
    assert not model.bert.encoder.layer[0].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_a_model_without_memory_is_not_tried() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(**ENCODER))
    assert one_token(model) is None
    assert "classifier.weight" in trained(inject(model, LoRAConfig()))


def test_bitfit_looks_for_biases_in_the_body() -> None:
    for model in (ModernBertForSequenceClassification(MODERN), T5ForSequenceClassification(T5)):
        with pytest.raises(MethodError, match=r"the body of this model .* has none"):
            inject(model, BitFitConfig())
    deberta = inject(DebertaForSequenceClassification(DebertaConfig(**ENCODER)), BitFitConfig())
    ends = {name.rpartition(".")[2] for name in trained(deberta) if name.startswith("deberta.")}
    assert ends == {"bias", "q_bias", "v_bias"}
    assert {"pooler.dense.weight", "classifier.weight"} <= trained(deberta)


def test_the_last_layers_of_two_stacks_are_refused() -> None:
    for model in (BartForSequenceClassification(BART), T5ForConditionalGeneration(T5)):
        with pytest.raises(MethodError, match=r"its lists are: .*encoder.*, .*decoder.*Encoder-decoders"):
            inject(model, LastLayersConfig(layers=1))
    shared = AutoConfig.for_model("albert", **ENCODER | {"embedding_size": HIDDEN})
    assert isinstance(shared, AlbertConfig)
    with pytest.raises(MethodError, match=r"no one list of 2 blocks.*share their blocks"):
        inject(AlbertForSequenceClassification(shared), LastLayersConfig(layers=1))
    names = trained(inject(XLMRobertaForQuestionAnswering(XLMRobertaConfig(**ENCODER)), LastLayersConfig(layers=1)))
    assert {name.split(".layer.")[-1].split(".")[0] for name in names if ".layer." in name} == {"1"}
    assert {"qa_outputs.weight", "qa_outputs.bias"} <= names


class PackedElsewhere(nn.Linear):
    """A layer as bitsandbytes stores it: two weights in a byte."""

    def __init__(self) -> None:
        super().__init__(HIDDEN, HIDDEN)
        self.weight = nn.Parameter(torch.zeros(HIDDEN * HIDDEN // 2, 1, dtype=torch.uint8), requires_grad=False)


@pytest.mark.parametrize(
    "config", [LoRAConfig(), DoRAConfig(), IA3Config(), LastLayersConfig(), FullConfig()], ids=lambda c: c.name
)
def test_four_bits_of_another_library_are_refused_by_name(config: MethodConfig) -> None:
    model = make("bert")
    for block in model.bert.encoder.layer:
        block.attention.self.query = PackedElsewhere()
        block.attention.self.key = PackedElsewhere()
    with pytest.raises(MethodError, match=r"stored as torch.uint8, so another library \(such as bitsandbytes\)"):
        inject(model, config)


def test_the_share_that_stands_in_fused_experts_is_said() -> None:
    config = MixtralConfig(**ENCODER, num_key_value_heads=2, num_local_experts=4)
    model = MixtralForCausalLM(config)
    fused = LAYERS * 4 * (2 * 48 * HIDDEN + 48 * HIDDEN)  # gate and up in one, and down, of four experts
    share = f"{fused / sum(parameter.numel() for parameter in model.parameters()):.0%}"
    assert fused == sum(p.numel() for name, p in model.named_parameters() if "experts" in name)
    with pytest.warns(UserWarning, match=rf"{share} of the parameters are in no linear layer.*\.experts\."):
        quantize(model)
    with pytest.warns(UserWarning, match=share):
        inject(MixtralForCausalLM(config), LoRAConfig(targets="all-linear"))


def test_a_model_of_linear_layers_gets_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    for kind in ("bert", "gpt2-lm", "llama"):
        inject(make(kind), LoRAConfig(targets="all-linear"))
    assert not [warning for warning in recwarn if "linear layer" in str(warning.message)]
    assert isinstance(make("gpt2-lm"), GPT2LMHeadModel)


# --- every class that transformers offers ----------------------------------------------------------------------------


STORED = Path(__file__).with_name("every_head.json")


def test_new_parameters_are_trained_saved_and_loaded_in_another_process() -> None:
    found = every_head.run(every_head.SAMPLE)
    assert "fails" not in found, found["fails"]
    assert found["counts"]["equal"] > 3 * found["counts"]["refused"]
    assert found["by method"]["LoRA"]["equal"] >= 40
    for reason in found["refused"]:
        assert len(reason.split()) > 8, reason  # a sentence


def test_the_stored_report_has_no_failure() -> None:
    stored = json.loads(STORED.read_text("utf-8"))
    assert "fails" not in stored
    assert stored["counts"]["equal"] >= 224
    assert sum(stored["counts"].values()) == stored["classes"] * len(every_head.METHODS)
