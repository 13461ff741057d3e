"""The checks of chapter 18, the debugging clinic.

Half of them test a mended function. The other half test a *test*: it must raise the alarm for each broken set-up of
`debugging_patients`, and for no sound one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from course_utils.exercises import debugging_patients as patients
from course_utils.exercises.checking import Wrong, call, exercise, same_device
from course_utils.exercises.debugging_patients import Patient, look_trained, tiny_batch, tiny_classifier
from course_utils.methods import LoRAConfig, inject, trainable_parameters

_TESTS = "Test the test"
_NOTHING = "Nothing is trained"
_LOST = "Trained, and lost"
_MEASURED = "Measured wrongly"
_PREFIX = "base_model.model."


# --- a test is tested -----------------------------------------------------------------------------------------------


def _judge(answer: Any, given: list[Patient]) -> None:
    """Try a learner's test on every patient; raise `Wrong` at the first about which it is wrong."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says in a warning what the learner's test is to find out
        torch.manual_seed(0)
        verdicts = [_verdict(call(answer, patient.build, *patient.arguments)) for patient in given]
    if all(verdicts):
        raise Wrong(
            "Your test raises the alarm for every set-up, the sound ones too. A test that always warns is soon switched "
            f"off. A sound one: {next(p.name for p in given if not p.broken)}."
        )
    if not any(verdicts):
        raise Wrong(
            "Your test never raises the alarm, not for a broken set-up either. A broken one: "
            f"{next(p.name for p in given if p.broken)}."
        )
    for patient, verdict in zip(given, verdicts, strict=True):
        if verdict != patient.broken:
            mistake = "does not find a broken set-up" if patient.broken else "raises a false alarm at a sound set-up"
            raise Wrong(f"Your test {mistake}: {patient.name}. {patient.advice}")


def _verdict(value: Any) -> bool:
    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.dtype == torch.bool:
        return bool(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise Wrong(f"A test answers True (broken) or False (sound); yours returned {type(value).__name__}.")


@exercise(
    "debugging_clinic.detects_missing_layers",
    points=2,
    passes="Your test compares with a formula, so it finds a half where others look for nothing.",
    section=_TESTS,
)
def _detects_missing_layers(answer: Any) -> None:
    _judge(answer, patients.layer_patients())


@exercise(
    "debugging_clinic.detects_lost_weights",
    points=2,
    passes="A lost head, a lost bias and a lost factor are all found, and dropout does not deceive your test.",
    section=_TESTS,
)
def _detects_lost_weights(answer: Any) -> None:
    _judge(answer, patients.reload_patients(tiny_batch()))


@exercise(
    "debugging_clinic.detects_wrong_training",
    points=3,
    passes="Your test asks what moves, and that is the question.",
    section=_TESTS,
)
def _detects_wrong_training(answer: Any) -> None:
    _judge(answer, patients.optimiser_patients(tiny_batch()))


@exercise(
    "debugging_clinic.detects_no_effect",
    points=2,
    passes="An adapter that does nothing is found, and one that does little is left in peace.",
    section=_TESTS,
)
def _detects_no_effect(answer: Any) -> None:
    _judge(answer, patients.loading_patients())


@exercise(
    "debugging_clinic.detects_no_gradient",
    points=2,
    passes="Your test knows the difference between a gradient of zero and none.",
    section=_TESTS,
)
def _detects_no_gradient(answer: Any) -> None:
    _judge(answer, patients.gradient_patients(tiny_batch()))


@exercise(
    "debugging_clinic.detects_padding",
    points=2,
    passes="More padding must change nothing: a test that needs to know nothing about the inside.",
    section=_TESTS,
)
def _detects_padding(answer: Any) -> None:
    _judge(answer, patients.padding_patients(tiny_batch()))


# --- mended functions -----------------------------------------------------------------------------------------------


def _refusal(answer: Any, *arguments: Any) -> str | None:
    """The text of the ValueError that the answer raises; None if it raises none."""
    try:
        call(answer, *arguments)
    except Wrong:
        raise
    except NotImplementedError:
        raise
    except ValueError as error:
        return str(error) or "nothing"
    except Exception as error:
        raise Wrong(
            f"Raise a ValueError with a sentence; yours stopped with {type(error).__name__}: {error}."
        ) from None
    return None


@exercise(
    "debugging_clinic.choose_layers",
    points=2,
    passes="A name that matches nothing is now an error, and it says which name.",
    section=_NOTHING,
)
def _choose_layers(answer: Any) -> None:
    names = ["block.0.query", "block.0.query_norm", "block.0.value", "block.1.query", "block.1.value", "pooler.dense"]
    right = ["block.0.query", "block.0.value", "block.1.query", "block.1.value"]
    found = call(answer, list(names), ("query", "value"))
    if not isinstance(found, list | tuple):
        raise Wrong(f"Expected a list of names, got {type(found).__name__}.")
    if "block.0.query_norm" in found:
        raise Wrong(
            "It takes block.0.query_norm for a query. Compare the whole last part of the name, name.split('.')[-1]."
        )
    if sorted(found) != right:
        raise Wrong(f"For the targets query and value it should return {right}, it returned {list(found)}.")
    others = ["encoder.0.q_proj", "encoder.0.k_proj", "encoder.1.q_proj"]
    if list(call(answer, others, ("q_proj",))) != ["encoder.0.q_proj", "encoder.1.q_proj"]:
        raise Wrong("It is right for one list of names only. Look at the names that are handed over.")
    if list(call(answer, list(names), ("dense",))) != ["pooler.dense"]:
        raise Wrong("For the target dense it should return ['pooler.dense'].")
    if _refusal(answer, list(names), ("q_proj", "v_proj")) is None:
        raise Wrong("The targets q_proj and v_proj match nothing, and your function says nothing. Raise a ValueError.")
    words = _refusal(answer, list(names), ("query", "v_proj"))
    if words is None:
        raise Wrong(
            "Of the targets query and v_proj the first matches and the second does not, and your function says nothing. "
            "Half of what was asked for is not enough: look at each target."
        )
    if "v_proj" not in words:
        raise Wrong(
            "The error does not name v_proj. Say which target matches nothing: the reader has to mend just that."
        )


@exercise(
    "debugging_clinic.save_trained",
    points=2,
    passes="Whatever was trained is in the file, and nothing else.",
    section=_LOST,
)
def _save_trained(answer: Any) -> None:
    for rank in (2, 3):
        _saved(answer, look_trained(inject(tiny_classifier(), LoRAConfig(rank=rank))))


def _saved(answer: Any, model: Any) -> None:
    trained = trainable_parameters(model)
    expected = {name: parameter.detach().clone() for name, parameter in trained.items()}
    saved = call(answer, model)
    if not isinstance(saved, dict):
        raise Wrong(f"Expected a dictionary from name to tensor, got {type(saved).__name__}.")
    if kinds := {type(value).__name__ for value in saved.values() if not isinstance(value, torch.Tensor)}:
        raise Wrong(f"Its values should be tensors, which `load_state_dict` takes; yours are {min(kinds)}.")
    for name, value in saved.items():
        same_device(value, str(name))
    names = set(saved)
    if names and names <= {name for name in expected if "lora_" in name}:
        raise Wrong("The head is missing. It is new and was trained too, so a reloaded model would have a random one.")
    if names and names <= {name for name in expected if name.startswith("classifier")}:
        raise Wrong("Only the head is there; LoRA's own weights are missing.")
    if names > set(expected):
        raise Wrong("Frozen weights are in it too. They lie in the base model already; save what requires_grad.")
    if names != set(expected):
        raise Wrong(f"It holds {sorted(names)[:3]} ..., but these were trained: {', '.join(sorted(expected)[:3])} ...")
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(1.0)
    if any(not torch.equal(saved[name].detach(), expected[name]) for name in expected):
        raise Wrong(
            "What you saved changes when training goes on: it is the model's own memory. Take copies, detach().clone()."
        )
    if any(tensor.requires_grad for tensor in saved.values()):
        raise Wrong("The tensors still carry a history of gradients. Take detach().clone().")


@exercise(
    "debugging_clinic.prepare",
    points=2,
    passes="First freeze and insert, then make the optimiser.",
    section=_NOTHING,
)
def _prepare(answer: Any) -> None:
    for rank, rate in ((2, 1e-2), (3, 2e-2)):
        _prepared(answer, LoRAConfig(rank=rank), rate)


def _prepared(answer: Any, config: LoRAConfig, rate: float) -> None:
    batch, model = tiny_batch(), tiny_classifier()
    pretrained = {name: parameter for name, parameter in model.named_parameters() if not name.startswith("classifier")}
    before = {name: parameter.detach().clone() for name, parameter in pretrained.items()}
    optimiser = call(answer, model, config, rate)
    if not isinstance(optimiser, torch.optim.Optimizer):
        raise Wrong(f"Return the optimiser; yours returned {type(optimiser).__name__}.")
    lora = {name: parameter for name, parameter in model.named_parameters() if "lora_" in name}
    if not lora:
        raise Wrong("No LoRA is in the model afterwards. Call inject(model, config) in your function.")
    if any(len(p) != config.rank for name, p in lora.items() if "lora_A" in name):
        raise Wrong("LoRA has another rank than `config` says. Hand the argument on to inject.")
    if any(abs(group["lr"] - rate) > 1e-9 for group in optimiser.param_groups):
        raise Wrong("The optimiser does not have the learning rate that was given.")
    held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in lora.values()):
        if all(id(parameter) in held for parameter in pretrained.values()):
            raise Wrong("The optimiser was made before the adapter was put in, so it does not know LoRA's weights.")
        raise Wrong("The optimiser does not hold LoRA's weights.")
    if any(parameter.requires_grad for parameter in pretrained.values()):
        raise Wrong("Pretrained weights are trained too. inject freezes them; do not unfreeze them again.")
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):
        optimiser.zero_grad()
        model.train()(**batch).loss.backward()
        optimiser.step()
    if any(not torch.equal(parameter, before[name]) for name, parameter in pretrained.items()):
        raise Wrong("Two steps change the pretrained weights. They must stay.")
    still = [n for n, p in trainable_parameters(model).items() if torch.equal(p, start[n])]
    if still:
        raise Wrong(f"Two steps do not move {still[0]}. The optimiser must hold everything that is trainable.")


@exercise(
    "debugging_clinic.load_strictly",
    points=3,
    passes="Every key is used, every trained weight comes from the file, and else it says so.",
    section=_LOST,
)
def _load_strictly(answer: Any) -> None:
    def fresh() -> Any:
        return inject(tiny_classifier(), LoRAConfig(rank=2))

    source = look_trained(fresh())
    file = {_PREFIX + name: p.detach().clone() for name, p in trainable_parameters(source).items()}
    model = fresh()
    try:
        call(answer, model, dict(file))
    except RuntimeError as error:
        if "Missing key" in str(error):
            raise Wrong(
                "load_state_dict with strict=True asks for the frozen weights too, and no adapter's file holds them. "
                "Compare the names with those of the trainable parameters, and then load with strict=False."
            ) from None
        raise
    loaded = trainable_parameters(model)
    different = [n for n, p in trainable_parameters(source).items() if n not in loaded or not torch.equal(p, loaded[n])]
    if different:
        raise Wrong(
            f"{different[0]} did not come from the file: its name there begins with {_PREFIX}, and in the model it does "
            "not."
        )
    lost = _PREFIX + next(name for name in loaded if "lora_B" in name)
    words = _refusal(answer, fresh(), {name: tensor for name, tensor in file.items() if name != lost})
    if words is None:
        raise Wrong(
            f"A file without {lost} was loaded without a word. Raise a ValueError when a trained weight is missing."
        )
    if lost.removeprefix(_PREFIX) not in words:
        raise Wrong("The error does not name the key that is missing. Without the name the reader has to guess.")
    other = {name.replace("query", "q_proj"): tensor for name, tensor in file.items()}
    if _refusal(answer, fresh(), file | other) is None:
        raise Wrong(
            "A file with keys that the model does not have was loaded without a word. Raise a ValueError for them too."
        )
    if _refusal(answer, fresh(), {name.removeprefix(_PREFIX): tensor for name, tensor in file.items()}) is None:
        kept = fresh()  # a loader that takes both forms is fine, if it really loads
        call(answer, kept, {name.removeprefix(_PREFIX): tensor for name, tensor in file.items()})
        now = trainable_parameters(kept)
        if any(not torch.equal(p, now[n]) for n, p in trainable_parameters(source).items()):
            raise Wrong("A file whose names have no prefix was loaded without a word, and nothing was loaded.")


@exercise(
    "debugging_clinic.checkpoint",
    points=2,
    passes="Activations are computed twice, and every trained weight gets the gradient that it had before.",
    section=_NOTHING,
)
def _checkpoint(answer: Any) -> None:
    batch = tiny_batch()

    def fresh() -> Any:
        return look_trained(inject(tiny_classifier(), LoRAConfig(rank=2))).train()

    plain = fresh()
    plain(**batch).loss.backward()
    expected = {name: parameter.grad for name, parameter in trainable_parameters(plain).items()}
    model = fresh()
    tuned = call(answer, model)
    if not isinstance(tuned, torch.nn.Module):
        raise Wrong(f"Return the model; yours returned {type(tuned).__name__}.")
    if tuned is not model:
        raise Wrong("You returned a copy; the optimiser holds the weights of the model that was handed over.")
    runs: list[int] = []
    blocks: Any = tuned.get_submodule("bert.encoder.layer")
    for number, block in enumerate(blocks):
        block.attention.register_forward_hook(lambda module, inputs, output, number=number: runs.append(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned.train()(**batch).loss.backward()
    trained = trainable_parameters(tuned)
    if set(trained) - set(expected):
        raise Wrong(
            f"{min(set(trained) - set(expected))} is trained now. The gradient has to pass the embeddings' output; the "
            "table itself stays frozen."
        )
    none = [name for name in expected if trained[name].grad is None]
    if none:
        raise Wrong(
            f"{none[0]} has no gradient. The older, reentrant kind of checkpointing asks whether the block's *input* "
            "needs a gradient, and the output of frozen embeddings does not."
        )
    if sorted(runs) != [0, 0, 1, 1]:
        raise Wrong(
            "The blocks are not computed again in the backward pass: checkpointing is off, and no memory is saved."
        )
    for name, gradient in expected.items():
        found = trained[name].grad
        if gradient is None or found is None or not torch.allclose(gradient, found, rtol=1e-4, atol=1e-6):
            raise Wrong(f"The gradient of {name} is another one than without checkpointing.")


@exercise(
    "debugging_clinic.mask_labels",
    points=2,
    passes="Padding is left out by its mask, and a real end-of-text token is learnt.",
    section=_MEASURED,
)
def _mask_labels(answer: Any) -> None:
    tokens = torch.tensor([[5, 7, 2, 2, 2], [9, 4, 6, 8, 2], [3, 3, 2, 2, 2]])  # 2 ends a text, and pads
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = call(answer, tokens, mask)
    if not isinstance(labels, torch.Tensor) or labels.shape != tokens.shape:
        raise Wrong("Expected a tensor of labels with the shape of the tokens.")
    same_device(labels, "the tensor of labels")
    mistakes: list[tuple[Callable[[], torch.Tensor], str]] = [
        (lambda: tokens, "Nothing is left out: the model would be praised for predicting padding."),
        (
            lambda: tokens.masked_fill(tokens == 2, -100),
            "You look for the padding by its token. Many tokenisers pad with the end-of-text token; then every *real* end is "
            "left out too, and the model never learns to stop. Use the mask.",
        ),
        (lambda: tokens.masked_fill(mask == 1, -100), "It is the wrong way round: the mask is 1 at real tokens."),
        (lambda: tokens * mask, "0 is a token like any other. The loss ignores −100."),
        (lambda: tokens.masked_fill(mask == 0, -1), "The loss ignores −100, not −1."),
        (
            lambda: torch.cat((tokens, torch.full((3, 1), 2)), 1)[:, 1:].masked_fill(mask == 0, -100),
            "You moved the labels by one. The models of transformers do that themselves, inside the loss.",
        ),
    ]
    right = tokens.masked_fill(mask == 0, -100)
    if torch.equal(labels, right):
        tokens, mask = torch.tensor([[8, 2, 2, 2], [2, 2, 6, 2]]), torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
        if not torch.equal(call(answer, tokens, mask), tokens.masked_fill(mask == 0, -100)):
            raise Wrong("It is right for one batch only. Take tokens and mask from what you are given.")
        return
    for wrong, words in mistakes:
        if torch.equal(labels.to(torch.long), wrong()):
            raise Wrong(words)
    raise Wrong("The labels are the tokens, with −100 wherever the mask is 0.")
