"""The patients of chapter 18: tiny models, and set-ups of which some are broken and some are sound.

A learner's regression test is itself tested here: it must find each broken set-up, and leave each sound one alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_utils.methods import HeadOnlyConfig, LoRAConfig, inject, trainable_parameters

VOCABULARY, HIDDEN, WIDE, PAD = 64, 32, 48, 1
Batch = dict[str, torch.Tensor]
_SQUARE, _FEED_FORWARD = (HIDDEN, HIDDEN), (WIDE, HIDDEN)


def tiny_classifier(seed: int = 0, *, dropout: float = 0.0, classes: int = 2) -> Any:
    """A BERT of two layers with 32 numbers a token and random weights: a step takes a few milliseconds.

    Args:
        seed: of the body. The head is drawn after it, so two seeds differ in both.
        dropout: everywhere in the model.
        classes: of the head.

    Returns:
        The model, in evaluation mode. Your own random state is left as it was.
    """
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=WIDE,
        max_position_embeddings=40,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=PAD,
        initializer_range=0.1,
    )
    config.num_labels = classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForSequenceClassification(config).eval()


def tiny_language_model(seed: int = 0) -> Any:
    """A GPT-2 of two layers with random weights, in evaluation mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=HIDDEN,
        n_layer=2,
        n_head=4,
        n_positions=40,
        pad_token_id=PAD,
        bos_token_id=2,
        eos_token_id=3,
        initializer_range=0.5,  # large: whatever it reads shows clearly in the logits
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def tiny_batch(rows: int = 8, length: int = 9, seed: int = 0) -> Batch:
    """Random tokens, padded on the right (no two neighbours are equally long), and two classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, VOCABULARY, (rows, length), generator=generator)
    mask = torch.ones_like(tokens)
    for row in range(rows):
        mask[row, length - row % 4 :] = 0
    return {
        "input_ids": tokens.masked_fill(mask == 0, PAD),
        "attention_mask": mask,
        "labels": torch.arange(rows) % 2,
    }


@torch.no_grad()
def look_trained(model: nn.Module, size: float = 0.1, seed: int = 1) -> nn.Module:
    """Draw everything trainable at random, as if the model had been trained for long. In place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in trainable_parameters(model).values():
        parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


@dataclass(frozen=True)
class Patient:
    """One set-up that a learner's test is tried on.

    Args:
        name: what is special about it, in words that end a sentence.
        broken: whether a test must raise the alarm.
        advice: for the learner whose test is wrong about it.
        build: makes the set-up afresh.
        arguments: what the test is given beside `build`.
    """

    name: str
    broken: bool
    advice: str
    build: Callable[[], Any]
    arguments: tuple[Any, ...] = ()


def _tuned(
    targets: Any = ("query", "value"), rank: int = 4, trained: bool = False, **settings: Any
) -> Callable[[], Any]:
    def build() -> Any:
        model = inject(tiny_classifier(**settings), LoRAConfig(rank=rank, targets=targets))
        return look_trained(model) if trained else model

    return build


def layer_patients() -> list[Patient]:
    """Models in which LoRA reached all layers that were meant, or not."""
    pair = ([_SQUARE] * 4, 4)
    head = "Count the numbers of LoRA alone, whose names hold 'lora_': the head is trained too, and is not its own."
    return [
        Patient(
            "no layer at all got an adapter, only the head is trained",
            True,
            head,
            lambda: inject(tiny_classifier(), HeadOnlyConfig()),
            pair,
        ),
        Patient("all layers got one", False, head, _tuned(), pair),
        Patient(
            "the query layers got one, the value layers did not",
            True,
            "More than none is not yet all: compare with the count by formula, rank · (out + in) for each matrix.",
            _tuned(("query",)),
            pair,
        ),
        Patient(
            "the first block got its adapters, the second did not",
            True,
            "It is not enough to find each kind of layer once: compare with the count by formula.",
            _tuned(r"bert\.encoder\.layer\.0\..*(query|value)"),
            pair,
        ),
        Patient(
            "LoRA of rank 3 sits in matrices that are not square",
            False,
            "A has rank · in numbers and B has out · rank: take both sides of each shape, and the rank that you are given.",
            _tuned(r".*\.intermediate\.dense", rank=3),
            ([_FEED_FORWARD] * 2, 3),
        ),
        Patient("the head has five classes", False, head, _tuned(classes=5), pair),
    ]


def _pair(lost: Callable[[str], bool], dropout: float = 0.0, training: bool = False) -> Callable[[], Any]:
    def build() -> Any:
        models = [inject(tiny_classifier(dropout=dropout), LoRAConfig(rank=4)) for _ in range(2)]
        trained, reloaded = (look_trained(model, 0.3) for model in models)
        bias = trainable_parameters(trained)["classifier.bias"]
        other = trainable_parameters(look_trained(inject(tiny_classifier(), LoRAConfig(rank=4)), 0.3, seed=2))
        with torch.no_grad():
            bias.copy_(torch.tensor([0.01, -0.01]))
            for name, parameter in trainable_parameters(reloaded).items():
                parameter.copy_(trainable_parameters(trained)[name])
                if lost(name):
                    parameter.copy_(torch.zeros_like(parameter) if parameter.ndim == 1 else other[name])
        return trained.train(training), reloaded.train(training)

    return build


def reload_patients(batch: Batch) -> list[Patient]:
    """Pairs of a trained and a reloaded model."""
    given = (batch,)
    evaluate = (
        "Both models are in training mode, and dropout draws anew each time. Call eval() on both before you compare."
    )
    return [
        Patient(
            "the head was not saved and is random again",
            True,
            "The weights of LoRA came back, and they are not all that was trained. Compare what the models answer.",
            _pair(lambda name: name.startswith("classifier")),
            given,
        ),
        Patient(
            "everything came back",
            False,
            "Two models with equal weights give equal logits.",
            _pair(lambda _: False),
            given,
        ),
        Patient(
            "the head's weight was saved and its bias was not",
            True,
            "The two models choose the same classes for these few texts, but their logits differ. Compare the logits.",
            _pair(lambda name: name == "classifier.bias"),
            given,
        ),
        Patient(
            "one factor B of twelve tensors did not come back",
            True,
            "Here the head is well, and LoRA is not. Compare what the models answer.",
            _pair(lambda name: "layer.1.attention.self.value.lora_B" in name),
            given,
        ),
        Patient(
            "everything came back, and the models are still in training mode",
            False,
            evaluate,
            _pair(lambda _: False, dropout=0.3, training=True),
            given,
        ),
    ]


def _with_optimiser(
    choose: Callable[[Any], list[Any]], early: bool = False, unfreeze: bool = False
) -> Callable[[], Any]:
    def build() -> Any:
        model = tiny_classifier()
        parameters = choose(model) if early else []
        inject(model, LoRAConfig(rank=4))
        if unfreeze:
            model.requires_grad_(True)
        parameters = parameters or choose(model)
        return model, torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)

    return build


def _groups(model: Any) -> list[Any]:
    trained = trainable_parameters(model)
    return [
        {"params": [p for n, p in trained.items() if n.endswith("lora_B.weight")], "lr": 2e-2},
        {"params": [p for n, p in trained.items() if not n.endswith("lora_B.weight")]},
    ]


def optimiser_patients(batch: Batch) -> list[Patient]:
    """Models with LoRA, each with the optimiser that is to train it."""
    given = (batch,)
    return [
        Patient(
            "the optimiser was made before the adapter was put in",
            True,
            "It holds the pretrained weights, which are frozen, and the head, which learns. No weight of LoRA is in it.",
            _with_optimiser(lambda model: list(model.parameters()), early=True),
            given,
        ),
        Patient(
            "the optimiser holds exactly what is trainable",
            False,
            "After one step A still stands where it was: B was zero, so A's gradient was zero. Take two steps.",
            _with_optimiser(lambda model: list(trainable_parameters(model).values())),
            given,
        ),
        Patient(
            "the whole model was made trainable again",
            True,
            "All of LoRA learns here, and the pretrained weights with it. Look at them too.",
            _with_optimiser(lambda model: list(model.parameters()), unfreeze=True),
            given,
        ),
        Patient(
            "the head is not in the optimiser",
            True,
            "LoRA learns here, and the new, random head does not. It belongs to what must move.",
            _with_optimiser(lambda model: [p for n, p in trainable_parameters(model).items() if "lora_" in n]),
            given,
        ),
        Patient(
            "the optimiser has two groups, one of them for B with its own rate (LoRA+)",
            False,
            "optimizer.param_groups is a list, and the weights may stand in any of its groups.",
            _with_optimiser(_groups),
            given,
        ),
        Patient(
            "the optimiser was given all parameters after they were frozen",
            False,
            "A frozen weight has no gradient, so the optimiser skips it. What counts is what moves.",
            _with_optimiser(lambda model: list(model.parameters())),
            given,
        ),
    ]


def _loaded(change: Callable[[str, torch.Tensor], torch.Tensor | float]) -> Callable[[], Any]:
    def build() -> Any:
        model = _tuned(trained=True)()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(change(name, parameter))
        return model

    return build


def _one_row_zero(_: str, parameter: torch.Tensor) -> torch.Tensor:
    factor = torch.ones_like(parameter)
    factor[0] = 0
    return factor


def loading_patients() -> list[Patient]:
    """Models with LoRA after their checkpoint was loaded."""
    return [
        Patient(
            "every B is zero: no key of the file matched",
            True,
            "A is random from the start, so it tells nothing. Look at B.",
            _loaded(lambda name, parameter: 0.0),
        ),
        Patient(
            "every B was loaded",
            False,
            "Here the update is not zero.",
            _loaded(lambda name, parameter: 1.0),
        ),
        Patient(
            "the second block's B are zero, the first block's are not",
            True,
            "Half of the keys matched. One B that is all zeros is enough for an alarm.",
            _loaded(lambda name, parameter: 0.0 if "layer.1." in name else 1.0),
        ),
        Patient(
            "the numbers of B are small, about 0.00001, but not zero",
            False,
            "After a short training B may be small. Only an exact zero says that nothing was loaded.",
            _loaded(lambda name, parameter: 1e-4),
        ),
        Patient(
            "one row of each B is zero, the others are not",
            False,
            "An output that LoRA leaves alone is no accident. Ask whether the *whole* of a B is zero.",
            _loaded(_one_row_zero),
        ),
    ]


def checkpoint_blocks(model: Any, reentrant: bool) -> Any:
    """Let each block of a BERT forget its activations and compute them again in the backward pass. In place.

    Args:
        model: the classifier.
        reentrant: the older kind of torch's checkpointing, which looks for a gradient at the block's input.
    """
    for block in model.bert.encoder.layer:
        block.forward = _checkpointed(block.forward, reentrant)
    return model


def _checkpointed(inner: Callable[..., Any], reentrant: bool) -> Callable[..., Any]:
    def forward(hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return checkpoint(lambda h: inner(h, *arguments, **options), hidden_states, use_reentrant=reentrant)

    return forward


def _detached() -> Any:
    model = _tuned(trained=True)().train()
    layer = model.bert.encoder.layer[0].attention.self.query.lora_A
    layer.register_forward_hook(lambda module, inputs, output: output.detach())
    return model


def gradient_patients(batch: Batch) -> list[Patient]:
    """Models with LoRA in training mode, to take one backward pass."""
    given = (batch,)
    return [
        Patient(
            "checkpointing skips all blocks, since their input needs no gradient",
            True,
            "The head gets its gradient all the same, so the loss falls a little. Ask each trainable tensor for its own.",
            lambda: checkpoint_blocks(_tuned()().train(), True),
            given,
        ),
        Patient(
            "a fresh LoRA: A's gradient is zero, because B is zero",
            False,
            "Frozen weights have no gradient, and shall have none. And A's first gradient is a tensor of zeros, which is "
            "not the same as None: it will come alive after the first step.",
            lambda: _tuned()().train(),
            given,
        ),
        Patient(
            "one output is detached, so one single tensor has no gradient",
            True,
            "All others have theirs. One trainable tensor without a gradient is enough for an alarm.",
            _detached,
            given,
        ),
        Patient(
            "checkpointing of the newer kind, which needs no gradient at the input",
            False,
            "Checkpointing is on, and every gradient arrives. Look at the gradients, not at the switch.",
            lambda: checkpoint_blocks(_tuned()().train(), False),
            given,
        ),
    ]


def _loss(kind: str) -> Callable[[], Any]:
    def build() -> Any:
        model = tiny_language_model()

        @torch.no_grad()
        def loss(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> float:
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
            goals, real = input_ids[:, 1:], attention_mask[:, 1:].bool()
            each = nn.functional.cross_entropy(logits.transpose(1, 2), goals, reduction="none")
            if kind == "learns padding":
                return each.mean().item()
            if kind == "divides by all":
                return ((each * real).sum() / each.numel()).item()
            value = each[real].mean().item()
            return value * (1 + 1e-7 * input_ids.shape[1]) if kind == "rounds" else value

        return loss

    return build


def padding_patients(batch: Batch) -> list[Patient]:
    """Losses of a language model, as functions of the tokens and the mask."""
    given = (batch["input_ids"], batch["attention_mask"])
    return [
        Patient(
            "padding counts as text that is to be learnt",
            True,
            "Add a few columns of padding on the right, with 0 in the mask, and see whether the loss changes.",
            _loss("learns padding"),
            given,
        ),
        Patient(
            "padding is left out of the loss",
            False,
            "Add the padding on the right, and give it 0 in the mask: on the left it would move the positions of all "
            "tokens, and with 1 in the mask it would be text.",
            _loss("sound"),
            given,
        ),
        Patient(
            "the sum leaves padding out, but is divided by the number of all positions",
            True,
            "Other tokens in the padding change nothing here, more of it does: add columns.",
            _loss("divides by all"),
            given,
        ),
        Patient(
            "the loss differs in the seventh digit, as sums do that are added in another order",
            False,
            "Compare with a tolerance, such as one in ten thousand: another shape may add its numbers in another order.",
            _loss("rounds"),
            given,
        ),
    ]
