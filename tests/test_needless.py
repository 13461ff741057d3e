"""What a step need not compute: that it changes what it says and nothing else, and that all of it is undone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from models import CLASSIFIERS, fill_lora, make, make_batch, relative, rounding
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_outputs import SequenceClassifierOutput

from course_utils.methods import FullConfig, LoRAConfig, MethodConfig, PrefixTuningConfig, PromptTuningConfig, inject
from course_utils.training import History, TrainingConfig, TrainingError, fit, needless
from course_utils.training.needless import first_token_only, plain_attention, quick, without_drawing

ENCODERS = ("bert", "roberta")


def loss_and_gradients(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    grown = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": output.logits.detach(), **grown}


@pytest.mark.parametrize("config", [LoRAConfig(targets="all-linear"), FullConfig()])
@pytest.mark.parametrize("kind", ENCODERS)
def test_one_token_in_the_last_layer_gives_the_same_logits_and_gradients(kind: str, config: MethodConfig) -> None:
    model, batch = inject(make(kind), config), make_batch(kind)
    fill_lora(model)
    usual = loss_and_gradients(model, batch)
    with first_token_only(model):
        short = loss_and_gradients(model, batch)
    assert short.keys() == usual.keys()
    assert all(relative(short[name], usual[name]) < rounding() for name in usual if usual[name].norm() > 1e-6)
    after = loss_and_gradients(model, batch)
    assert all(torch.equal(after[name], usual[name]) for name in usual)


def test_one_token_in_the_last_layer_is_less_work() -> None:
    model, batch = make("bert"), make_batch("bert")
    counts = {}
    for name, way in {"usual": plain_attention, "short": first_token_only}.items():
        with way(model), plain_attention(model), FlopCounterMode(display=False) as counter:
            model(**batch).loss.backward()
        counts[name] = counter.get_total_flops()
    texts, tokens = batch["input_ids"].shape
    width = model.config.hidden_size
    behind = width * width + 2 * width * model.config.intermediate_size  # weights behind the last attention
    # A product with a weight costs 2 operations a token forward, 2 for the input's gradient, 2 for the weight's own.
    assert counts["usual"] - counts["short"] == 3 * 2 * texts * (tokens - 1) * behind


@pytest.mark.parametrize(
    ("kind", "config"),
    [("gpt2", LoRAConfig()), ("llama", LoRAConfig()), ("bert", PromptTuningConfig()), ("bert", PrefixTuningConfig())],
)
def test_one_token_is_refused_where_more_are_read(kind: str, config: MethodConfig) -> None:
    model = inject(make(kind), config)
    with (
        pytest.raises(TrainingError, match="not known to have a head that reads the first token"),
        first_token_only(model),
    ):
        pass
    batch = make_batch(kind)
    usual = model(**batch).logits
    with quick(model):
        assert torch.allclose(model(**batch).logits, usual, atol=1e-5)


SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "num_labels": 3, "max_position_embeddings": 40, "pad_token_id": 0}
SIZES |= {"bos_token_id": 2, "eos_token_id": 3}


class MeanOfTokens(transformers.BertForSequenceClassification):
    """A head of one's own in a class that builds on BERT's."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(hidden.mean(1)))


def own_batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", sorted(needless.FIRST_TOKEN))
def test_each_class_that_is_known_reads_the_first_token(name: str) -> None:
    family = name.removesuffix("ForSequenceClassification")
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, f"{family}Config")(**SIZES)).eval()
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    usual = model(**own_batch()).logits
    with first_token_only(model):
        assert relative(model(**own_batch()).logits, usual) < rounding()


@pytest.mark.parametrize("model_class", [MeanOfTokens, transformers.BertForTokenClassification])
def test_quick_computes_all_tokens_where_a_head_reads_them(model_class: Any) -> None:
    torch.manual_seed(0)
    model = model_class(transformers.BertConfig(**SIZES)).eval()
    usual = model(**own_batch()).logits
    with quick(model):
        assert relative(model(**own_batch()).logits, usual) < rounding()


def test_quick_computes_all_tokens_where_their_vectors_are_asked_for() -> None:
    model = make("bert")
    batch = make_batch("bert")
    with quick(model):
        assert model(**batch, output_hidden_states=True).hidden_states[-1].shape[1] == batch["input_ids"].shape[1]
        model(**batch)
        model.config.output_hidden_states = True
        assert model(**batch).hidden_states[-1].shape[1] == batch["input_ids"].shape[1]


def test_nothing_is_drawn_inside_and_again_outside() -> None:
    model = inject(make("bert", dropout=0.5), LoRAConfig(dropout=0.25)).train()
    batch = make_batch("bert")
    shares = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert set(shares.values()) == {0.5, 0.25}
    with without_drawing(model):
        state = torch.get_rng_state()
        first, second = model(**batch).logits, model(**batch).logits
        assert torch.equal(first, second) and torch.equal(state, torch.get_rng_state())
    assert {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)} == shares
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


def test_attention_in_separate_products_is_the_same_attention() -> None:
    model: Any
    model, batch = make("bert"), make_batch("bert")
    usual = model(**batch).logits
    with plain_attention(model):
        assert model.config._attn_implementation == "eager"
        assert relative(model(**batch).logits, usual) < rounding()
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(**batch).logits, usual)


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def faster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.dtype]:
    """The precision that is the faster one on the processor that this one pretends to be."""
    monkeypatch.setattr(needless.precision, "fastest_dtype", lambda device=None: request.param)
    yield request.param


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_quick_leaves_the_model_as_it_was_whatever_happens(kind: str, faster: torch.dtype) -> None:
    model: Any = inject(make(kind, dropout=0.5), LoRAConfig())

    def state() -> list[Any]:
        drops = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
        hooks = [len(module._forward_pre_hooks) for module in model.modules()]
        return [drops, hooks, model.config._attn_implementation]

    before = state()
    with pytest.raises(KeyboardInterrupt), quick(model):
        inside = state()
        raise KeyboardInterrupt
    assert not any(inside[0]) and state() == before
    assert (sum(inside[1]) > sum(before[1])) is (kind in ENCODERS)
    on_gpu = torch.accelerator.is_available()  # its fused kernel is the quickest
    assert inside[2] == ("eager" if faster == torch.bfloat16 and not on_gpu else "sdpa")


def test_a_quick_run_repeats_itself_and_is_another_than_the_usual_one() -> None:
    def run(short: bool) -> History:
        model = inject(make("bert", dropout=0.1), LoRAConfig()).train()
        batch = make_batch("bert", rows=16)
        rows = [{name: values[i] for name, values in batch.items()} for i in range(16)]
        loader: Any = DataLoader(rows, batch_size=4)  # type: ignore[arg-type]
        config = TrainingConfig(learning_rate=1e-2, epochs=2, device="cpu")
        if not short:
            return fit(model, loader, loader, config)
        with quick(model):
            return fit(model, loader, loader, config)

    assert run(True) == run(True) != run(False)


def test_no_gradient_is_computed_below_the_first_adapter() -> None:
    model: Any = inject(make("bert"), LoRAConfig()).train()
    seen = []
    model.bert.embeddings.register_forward_hook(lambda *given: seen.append(given[-1].requires_grad))
    model(**make_batch("bert"))
    assert seen == [False]


def test_a_model_from_peft_is_quick_too() -> None:
    import peft

    model: Any = peft.get_peft_model(
        make("bert", dropout=0.1), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    )
    with quick(model):
        assert not any(module.p for module in model.modules() if isinstance(module, nn.Dropout))
        assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 2
        model(**make_batch("bert")).loss.backward()
