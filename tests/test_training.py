"""The training loop: what it promises, on a tiny BERT whose every number can be checked, and once on the real one."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pair import IN_PAIRS, together
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_constant_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from course_utils.data import DataError
from course_utils.data.batching import LengthBucketedSampler, make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation.prediction import evaluate, predict
from course_utils.methods import (
    BitFitConfig,
    FullConfig,
    IA3Config,
    LoRAConfig,
    MethodConfig,
    inject,
    trainable_parameters,
)
from course_utils.models.backbones import load_classifier
from course_utils.training import History, TrainingConfig, TrainingError, fit, learning_rates, parameter_groups

TEXTS, WORDS = 48, 64


def tiny_model(dropout: float = 0.1, seed: int = 0) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    config.initializer_range = 0.2
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return BertForSequenceClassification(config).train()


def tiny_rows(texts: int = TEXTS, seed: int = 0, learnable: bool = True) -> list[dict[str, Any]]:
    """Texts of equal length; the first token is the text's number, the second one tells its label."""
    chance = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(texts):
        ids = torch.randint(0, WORDS, (8,), generator=chance).tolist()
        label = ids[1] % 2 if learnable else int(torch.randint(0, 2, (1,), generator=chance))
        rows.append({"input_ids": [number, *ids[1:]], "labels": label})
    return rows


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


def tiny_loader(rows: list[dict[str, Any]], batch_size: int = 8, shuffle: bool = True) -> DataLoader:
    sampler = LengthBucketedSampler([len(row["input_ids"]) for row in rows], batch_size, shuffle)
    return DataLoader(rows, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]


def run(model: nn.Module | None = None, **settings: Any) -> tuple[History, nn.Module]:
    model = inject(model or tiny_model(), FullConfig())
    defaults: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 2, "device": "cpu"}
    train, validation = tiny_loader(tiny_rows()), tiny_loader(tiny_rows(16, seed=1), shuffle=False)
    return fit(model, train, validation, TrainingConfig(**defaults | settings)), model


def copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- repeatable ------------------------------------------------------------------------------------------------------


def test_one_seed_one_history() -> None:
    (first, model), (second, other) = run(), run()
    assert first == second
    assert same(model.state_dict(), other.state_dict())
    assert run(seed=1)[0] != first


def test_a_loader_used_before_starts_again() -> None:
    train, validation = tiny_loader(tiny_rows()), tiny_loader(tiny_rows(16, seed=1), shuffle=False)
    config = TrainingConfig(epochs=2, device="cpu")
    histories = [fit(inject(tiny_model(), FullConfig()), train, validation, config) for _ in range(2)]
    assert histories[0] == histories[1]


def test_the_real_model_repeats_itself_and_learns(tokenizer: PreTrainedTokenizerBase) -> None:
    part = load_sentiment()["train"].select(range(96))
    train = make_loader(part, tokenizer, 16, shuffle=True)
    validation = make_loader(part.select(range(32)), tokenizer, 32)
    config = TrainingConfig(learning_rate=2e-3, epochs=2, warmup=0, device="cpu")
    histories = [fit(inject(load_classifier()[0], LoRAConfig()), train, validation, config) for _ in range(2)]
    assert histories[0] == histories[1]
    assert len(histories[0].steps) == 12
    losses = [row["loss"] for row in histories[0].evaluations]
    assert losses[1] < losses[0] < 0.72


# --- the mathematics of a step ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 0.05}, {"weight_decay": 0.5}, {"schedule": "constant"}])
def test_equals_a_loop_written_out_bit_for_bit(settings: dict[str, Any]) -> None:
    history, model = run(epochs=1, warmup=0, **settings)

    by_hand = tiny_model()
    torch.manual_seed(0)
    decay = settings.get("weight_decay", 0.01)
    plain = [p for name, p in by_hand.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    matrices = [p for p in by_hand.parameters() if not any(p is q for q in plain)]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    loader = tiny_loader(tiny_rows())
    for number, batch in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 if settings.get("schedule") else (len(loader) - number) / len(loader))
        loss = by_hand(**batch).loss
        by_hand.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(by_hand.parameters(), settings.get("clip_norm", 1.0))
        optimizer.step()
        assert history.steps[number]["loss"] == loss.item()
        assert history.steps[number]["gradient_norm"] == norm.item()  # before clipping
    assert len(history.steps) == len(loader)
    assert same(model.state_dict(), by_hand.state_dict())


def test_clipping_and_decay_change_something() -> None:
    """Else the test above would compare equal things."""
    variants: list[dict[str, Any]] = [{}, {"clip_norm": 0.05}, {"weight_decay": 0.5}]
    weights = [run(epochs=1, **settings)[1].state_dict() for settings in variants]
    assert not same(weights[0], weights[1])
    assert not same(weights[0], weights[2])


@pytest.mark.parametrize(("method", "decays"), [(IA3Config(), False), (BitFitConfig(), False), (LoRAConfig(), True)])
def test_decay_pulls_at_matrices_and_not_at_vectors(method: MethodConfig, decays: bool) -> None:
    """The factors of (IA)³ rest at one, and are stored as one row or one column."""
    model = inject(tiny_model(), method)
    trained = {name: p for name, p in trainable_parameters(model).items() if "classifier" not in name}
    groups = parameter_groups(trained, method, TrainingConfig(learning_rate=1e-3))
    assert [group["weight_decay"] for group in groups] == [0.01 if decays else 0.0]


@pytest.mark.parametrize(
    ("schedule", "after"), [("linear", [8 / 8, 7 / 8, 6 / 8, 5 / 8, 4 / 8]), ("constant", [1.0] * 5)]
)
def test_schedule(schedule: str, after: list[float]) -> None:
    history, _ = run(epochs=2, max_steps=10, warmup=0.2, schedule=schedule)
    rates = [row["learning_rate"] for row in history.steps]
    assert rates[:7] == pytest.approx([0, 0.5e-3, *(1e-3 * share for share in after)])
    assert len(rates) == 10


def test_rows_of_the_history() -> None:
    history, _ = run(epochs=2)
    assert [row["step"] for row in history.steps] == list(range(1, 13))
    assert [row["epoch"] for row in history.steps] == [1] * 6 + [2] * 6
    assert [row["step"] for row in history.evaluations] == [6, 12]
    first = history.evaluations[0]
    assert set(first) == {"step", "epoch", "train_loss", "loss", "accuracy", "f1_macro", "roc_auc", "n"}
    assert first["n"] == 16
    assert first["train_loss"] == pytest.approx(sum(row["loss"] for row in history.steps[:6]) / 6)
    assert history.seconds > 0
    assert history.steps_frame().shape == (12, 5)
    assert history.evaluations_frame()["epoch"].tolist() == [1, 2]


@pytest.mark.parametrize("max_steps", [1, 6, 7])
def test_max_steps(max_steps: int) -> None:
    history, _ = run(epochs=9, max_steps=max_steps)
    assert len(history.steps) == max_steps
    assert len(history.evaluations) == math.ceil(max_steps / 6)
    assert history.evaluations[-1]["step"] == max_steps


def test_batch_of_one() -> None:
    model = inject(tiny_model(), FullConfig())
    one = tiny_loader(tiny_rows(3), batch_size=1)
    assert len(fit(model, one, one, TrainingConfig(epochs=1, device="cpu")).steps) == 3


def test_only_what_is_trainable_changes() -> None:
    model = inject(tiny_model(), LoRAConfig(rank=2))
    before, trained = copy_of(model), set(trainable_parameters(model))
    loader = tiny_loader(tiny_rows())
    fit(model, loader, loader, TrainingConfig(learning_rate=1e-2, epochs=1, device="cpu"))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trained
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_rates_of_a_run_are_known_before() -> None:
    for schedule in ("linear", "constant"):
        config = TrainingConfig(learning_rate=1e-3, epochs=2, warmup=0.25, schedule=schedule, device="cpu")
        history, _ = run(learning_rate=1e-3, warmup=0.25, schedule=schedule)
        assert learning_rates(config, 12) == [row["learning_rate"] for row in history.steps]
        assert learning_rates(config, 12)[0] == 0  # the first step of a warm-up changes nothing


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0.0), (7, 0.33), (12, 0.25), (37, 0.1), (100, 0.99)])
def test_the_schedules_are_those_of_transformers(schedule: str, total: int, warmup: float) -> None:
    config = TrainingConfig(learning_rate=3e-4, schedule=schedule, warmup=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=3e-4)
    steps = int(warmup * total)
    if schedule == "linear":
        theirs = get_linear_schedule_with_warmup(optimizer, steps, total)
    else:
        theirs = get_constant_schedule_with_warmup(optimizer, steps)
    expected = []
    for _ in range(total):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert learning_rates(config, total) == expected  # number for number


# --- several batches a step ------------------------------------------------------------------------------------------


class Shrink(FullConfig):
    """Full fine-tuning with a penalty on the head's weights."""

    def penalty(self, model: nn.Module) -> torch.Tensor:
        return model.get_parameter("classifier.weight").square().sum()


@pytest.mark.parametrize(
    "method", [FullConfig(), LoRAConfig(rank=2), Shrink()], ids=lambda method: type(method).__name__
)
@pytest.mark.parametrize(("small", "accumulate", "large"), [(8, 3, 24), (12, 2, 24), (20, 3, 48), (20, 2, 40)])
def test_several_batches_a_step_equal_one_large_batch(
    method: MethodConfig, small: int, accumulate: int, large: int
) -> None:
    """48 texts: in batches of 20 the last one holds 8, and counts only as much as its 8 texts."""
    history, model = run_plain(small, method, accumulate=accumulate)
    expected, reference = run_plain(large, method)
    assert len(history.steps) == len(expected.steps) == 2 * math.ceil(48 / large)
    for row, other in zip(history.steps + history.evaluations, expected.steps + expected.evaluations, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    weights = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        if not name.endswith("key.bias"):  # its gradient is rounding, and Adam makes whole steps of it
            assert torch.allclose(parameter, weights[name], atol=1e-4), name


def test_more_batches_a_step_than_an_epoch_has() -> None:
    history, _ = run(epochs=3, accumulate=100)
    assert [row["step"] for row in history.steps] == [1, 2, 3]
    assert [row["epoch"] for row in history.steps] == [1, 2, 3]


def test_max_steps_counts_the_steps_of_the_optimiser() -> None:
    history, _ = run(epochs=9, accumulate=4, max_steps=3)  # 6 batches an epoch: steps of 4 and 2 batches
    assert [(row["step"], row["epoch"]) for row in history.steps] == [(1, 1), (2, 1), (3, 2)]
    assert [row["step"] for row in history.evaluations] == [2, 3]


# --- watching --------------------------------------------------------------------------------------------------------


def test_watch_sees_every_row_and_changes_none() -> None:
    rows: list[dict[str, Any]] = []

    def watch(row: dict[str, Any]) -> None:
        rows.append(dict(row))
        row.clear()

    history, _ = run(epochs=2)
    model = inject(tiny_model(), FullConfig())
    config = TrainingConfig(learning_rate=1e-3, epochs=2, device="cpu")
    loaders = tiny_loader(tiny_rows()), tiny_loader(tiny_rows(16, seed=1), shuffle=False)
    assert fit(model, *loaders, config, watch=watch) == history
    assert [row for row in rows if "accuracy" not in row] == history.steps
    assert [row for row in rows if "accuracy" in row] == history.evaluations
    assert rows[6] == history.evaluations[0]  # in the order of time


def test_watch_may_stop_the_run() -> None:
    def watch(row: dict[str, Any]) -> None:
        if row["step"] == 8:
            raise KeyboardInterrupt

    model = inject(tiny_model(), FullConfig())
    config = TrainingConfig(learning_rate=1e-3, epochs=3, schedule="constant", warmup=0, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        fit(model, tiny_loader(tiny_rows()), tiny_loader(tiny_rows(16, seed=1), shuffle=False), config, watch=watch)
    _, one_epoch = run(epochs=1, schedule="constant", warmup=0)
    assert same(model.state_dict(), one_epoch.state_dict())


# --- stopping, and the best weights ----------------------------------------------------------------------------------


def test_early_stopping_counts_evaluations_without_improvement() -> None:
    # The first evaluation improves on nothing at all; no later one can improve by 10.
    history, model = run(epochs=9, patience=2, minimum_change=10.0, schedule="constant", warmup=0)
    assert history.stopped_early
    assert history.best_epoch == 1
    assert [row["epoch"] for row in history.evaluations] == [1, 2, 3]
    _, one_epoch = run(epochs=1, schedule="constant", warmup=0)
    assert same(model.state_dict(), one_epoch.state_dict())


def test_no_patience_no_early_stop() -> None:
    history, _ = run(epochs=4, minimum_change=10.0)
    assert not history.stopped_early
    assert len(history.evaluations) == 4


def test_best_weights_are_restored() -> None:
    """On labels that are chance the validation loss soon rises, so the best epoch is not the last."""
    model = inject(tiny_model(dropout=0), FullConfig())
    train = tiny_loader(tiny_rows(learnable=False))
    validation = tiny_loader(tiny_rows(32, seed=5, learnable=False), shuffle=False)
    history = fit(model, train, validation, TrainingConfig(learning_rate=3e-3, epochs=6, device="cpu"))
    losses = [row["loss"] for row in history.evaluations]
    assert min(losses) < losses[-1]
    assert history.best_epoch == losses.index(min(losses)) + 1
    labels, logits = predict(model, validation)
    restored = nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()
    assert restored == min(losses)
    assert evaluate(model, validation).accuracy == history.evaluations[history.best_epoch - 1]["accuracy"]


def test_interrupting_keeps_the_best_weights() -> None:
    """Ctrl-C in the second epoch leaves the weights of the first one."""
    calls = 0

    def press_ctrl_c(module: nn.Module, inputs: object) -> None:
        nonlocal calls
        calls += module.training
        if calls == 9:
            signal.raise_signal(signal.SIGINT)

    model = tiny_model()
    model.register_forward_pre_hook(press_ctrl_c)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            run(model, epochs=3, schedule="constant", warmup=0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls == 9
    _, one_epoch = run(epochs=1, schedule="constant", warmup=0)
    assert same(model.state_dict(), one_epoch.state_dict())


# --- what cannot go well ---------------------------------------------------------------------------------------------


def test_too_high_a_learning_rate_stops_with_an_explanation() -> None:
    model = tiny_model()
    before = copy_of(model)
    with pytest.raises(TrainingError, match=r"step \d+: training cannot go on.*learning rate \(1e\+30\)"):
        run(model, learning_rate=1e30, warmup=0)
    assert same(model.state_dict(), before)  # no epoch was finished, so these were the best


def test_weights_broken_by_the_last_step_of_an_epoch_are_noticed() -> None:
    model = tiny_model()
    before = copy_of(model)
    with pytest.raises(TrainingError, match="at step 1: training cannot go on"):
        run(model, learning_rate=1e30, warmup=0, max_steps=1)
    assert same(model.state_dict(), before)


def test_a_poisoned_weight_is_noticed_at_the_first_step() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("classifier.weight")[0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"the loss is nan .* at step 1"):
        run(model)


def test_nothing_to_train() -> None:
    model = tiny_model()
    model.requires_grad_(False)
    loader = tiny_loader(tiny_rows())
    with pytest.raises(TrainingError, match="no parameter of the model is trainable; inject a method"):
        fit(model, loader, loader)


@pytest.mark.parametrize("label", [2, -1, 0.5, None, 1.0, True, "positive", -100])
@pytest.mark.parametrize("where", ["train", "validation"])
def test_label_out_of_range(label: object, where: str) -> None:
    good, bad = tiny_rows(8), tiny_rows(8)
    bad[3]["labels"] = label
    train, validation = (bad, good) if where == "train" else (good, bad)
    with pytest.raises(TrainingError, match=f"text 3 has the label {label!r}, but the model has 2 classes.*0 to 1"):
        fit(tiny_model(), tiny_loader(train), tiny_loader(validation))


@pytest.mark.parametrize("label", [2, -2, 0.5, None, 1.0, True, "positive"])
def test_predict_and_evaluate_say_the_same_of_a_wrong_label(label: object) -> None:
    rows = tiny_rows(8)
    rows[3]["labels"] = label
    model = tiny_model()
    for judge in (predict, evaluate):
        with pytest.raises(DataError, match=f"text 3 has the label {label!r}, but the model has 2 classes.*0 to 1"):
            judge(model, tiny_loader(rows, shuffle=False))
    assert model.training


@pytest.mark.parametrize("mark", [None, -1, -100])
def test_predict_needs_no_labels_and_evaluate_does(mark: int | None) -> None:
    """Neither a column of labels, nor more than one text of a batch that has a label."""
    model, rows = tiny_model(), tiny_rows(20)
    _, expected = predict(model, tiny_loader(rows, shuffle=False))
    for number in range(20) if mark is None else (0, 9, 10):
        rows[number].pop("labels")
        if mark is not None:
            rows[number]["labels"] = mark
    truth, logits = predict(model, tiny_loader(rows, shuffle=False))
    assert truth.tolist() == [row.get("labels", -1) for row in rows]
    assert (logits == expected).all()
    said = "text 0 has no label, but" if mark is None else f"text 0 has the label {mark}, but"
    with pytest.raises(DataError, match=said):
        evaluate(model, tiny_loader(rows, shuffle=False))
    with pytest.raises(TrainingError, match=said):
        fit(model, tiny_loader(rows), tiny_loader(tiny_rows()))


def test_labels_under_the_names_of_transformers_and_as_tensors() -> None:
    """Its collators call `label` and `label_ids` `labels`; a dataset may hold tensors already."""
    plain = tiny_rows(16)
    for name, kind in (("label", int), ("label_ids", int), ("labels", torch.tensor), ("labels", np.int64)):
        rows = [{"input_ids": row["input_ids"], name: kind(row["labels"])} for row in plain]

        def renamed(rows: list[dict[str, Any]], name: str = name) -> dict[str, torch.Tensor]:
            return collate([{"input_ids": row["input_ids"], "labels": int(row[name])} for row in rows])

        loader: DataLoader = DataLoader(rows, 8, collate_fn=renamed)  # type: ignore[arg-type]
        assert evaluate(tiny_model(), loader).n == 16
        rows[2][name] = kind(7)
        with pytest.raises(DataError, match="text 2 has the label 7, but"):
            evaluate(tiny_model(), loader)


@pytest.mark.parametrize("frozen", [True, False])
def test_fp16_weights_are_named_first(frozen: bool) -> None:
    """At any rate, so that to lower it is no advice."""
    model = inject(tiny_model(dropout=0).half(), LoRAConfig(rank=2) if frozen else FullConfig())
    with torch.no_grad():
        model.get_parameter("bert.embeddings.LayerNorm.weight").fill_(60_000.0)  # what overflows
    loader, rate = tiny_loader(tiny_rows()), 1e-7
    said = r"best weights\. \d+ of its parameters, such as bert\.\S+, are fp16, .*load the model in float32"
    with pytest.raises(TrainingError, match=said):
        fit(model, loader, loader, TrainingConfig(learning_rate=rate, device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what must be absent")
def test_cuda_asked_for_and_absent() -> None:
    with pytest.raises(TrainingError, match=r"torch sees no CUDA device\. Use device='auto'"):
        run(device="cuda")


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0},
        {"learning_rate": math.inf},
        {"epochs": 0},
        {"schedule": "cosine"},
        {"warmup": 1.0},
        {"weight_decay": -0.1},
        {"clip_norm": 0},
        {"patience": 0},
        {"minimum_change": -1},
        {"precision": "fp16"},
        {"device": "tpu"},
        {"accumulate": 0},
        {"max_steps": 0},
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(TrainingError, match=f"expected {name} .*, got {value!r}"):
        TrainingConfig(**settings)


# --- precision, prediction, progress ---------------------------------------------------------------------------------


def test_bf16_after_fp32_in_one_process_and_back() -> None:
    exact, _ = run()
    rounded, model = run(precision="bf16")
    again, _ = run()
    assert exact == again
    assert exact != rounded
    assert rounded.evaluations[-1]["loss"] == pytest.approx(exact.evaluations[-1]["loss"], abs=0.05)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    # The model is an ordinary fp32 model again.
    fresh = tiny_model()
    fresh.load_state_dict(model.state_dict())
    batch = collate(tiny_rows(4))
    assert torch.equal(model.eval()(**batch).logits, fresh.eval()(**batch).logits)


@pytest.mark.parametrize("training", [True, False])
def test_predict_keeps_the_order_and_the_mode(training: bool) -> None:
    model, rows = tiny_model().train(training), tiny_rows(20)
    labels, logits = predict(model, DataLoader(rows, batch_size=6, collate_fn=collate))  # type: ignore[arg-type]
    assert model.training is training
    assert labels.tolist() == [row["labels"] for row in rows]
    model.eval()
    for row, got in zip(rows, logits, strict=True):
        assert torch.allclose(model(**collate([row])).logits[0], torch.tensor(got), atol=1e-5)


def test_the_mode_is_restored_when_predict_fails() -> None:
    model = tiny_model()
    with pytest.raises(IndexError):
        predict(model, DataLoader([{"input_ids": [WORDS + 1], "labels": 0}], collate_fn=collate))  # type: ignore[arg-type]
    assert model.training


def test_the_progress_bar_can_be_silenced(capsys: pytest.CaptureFixture[str]) -> None:
    assert os.environ["TQDM_DISABLE"] == "1"  # set in conftest.py; that the bar shows is tested below
    run(epochs=1)
    assert capsys.readouterr().err == ""


# --- several processes -----------------------------------------------------------------------------------------------


def train_in_a_pair(folder: Path) -> None:
    """What each of the two processes does; it writes what it saw."""
    torch.set_num_threads(1)
    # 1. plain batches of 8 in two processes are batches of 16 in one
    report: dict[str, Any] = {"spread": summary(*run_plain(batch_size=8))}

    # 2. the course's own sampler, with a last batch that is not full
    seen: list[int] = []
    model = tiny_model(dropout=0)
    model.register_forward_pre_hook(
        lambda module, inputs, batch: seen.extend(batch["input_ids"][:, 0].tolist()) if module.training else None,
        with_kwargs=True,
    )
    train, validation = tiny_loader(tiny_rows(44)), tiny_loader(tiny_rows(21, seed=1), shuffle=False)
    history = fit(model, train, validation, TrainingConfig(epochs=1, device="cpu"))
    report |= {"seen": seen, "losses": [row["loss"] for row in history.steps], "evaluation": history.evaluations}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(report), encoding="utf-8")


def run_plain(batch_size: int, method: MethodConfig | None = None, **settings: Any) -> tuple[History, nn.Module]:
    """Training on batches in the order of the rows, whatever the number of processes."""
    rows = tiny_rows()
    sampler = BatchSampler(SequentialSampler(rows), batch_size, drop_last=False)
    train: DataLoader = DataLoader(rows, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]
    model = inject(tiny_model(dropout=0), method or LoRAConfig(rank=2))
    validation = tiny_loader(tiny_rows(16, seed=1), shuffle=False)
    config = TrainingConfig(learning_rate=1e-3, epochs=2, device="cpu", **settings)
    return fit(model, train, validation, config), model


def summary(history: History, model: nn.Module) -> dict[str, Any]:
    weights = {name: parameter.flatten().tolist() for name, parameter in trainable_parameters(model).items()}
    return {"losses": [row["loss"] for row in history.steps], "weights": weights}


@IN_PAIRS
def test_two_processes(tmp_path: Path) -> None:
    told = together(train_in_a_pair, tmp_path, folder=tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))

    # Both ranks hold one model and know one history.
    assert first["spread"] == second["spread"]
    assert first["losses"] == second["losses"]
    assert first["evaluation"] == second["evaluation"]

    # Two processes with batches of 8 do what one does with batches of 16.
    alone = summary(*run_plain(batch_size=16))
    assert first["spread"]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for name, values in alone["weights"].items():
        assert first["spread"]["weights"][name] == pytest.approx(values, abs=1e-5)

    # 44 texts in batches of 8: the last batch holds 4 and is filled up with texts seen before; none is lost.
    seen = first["seen"] + second["seen"]
    assert len(first["seen"]) == len(second["seen"]) == 24
    assert set(seen) == set(range(44))
    assert first["evaluation"][0]["n"] == 21  # each validation text counts once

    bars = [
        line
        for line in told.replace("\r", "\n").splitlines()
        if line.startswith("training on cpu, fp32, ") and "100%" in line
    ]
    assert any("6/6" in line for line in bars)
    assert sum("6/6" in line for line in bars) <= 2  # one bar a run, not one a process


def test_a_model_of_your_own_works_too() -> None:
    """Nothing but `.loss` and `.logits` is asked of a model."""

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(WORDS, 2)

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> SequenceClassifierOutput:
            logits = self.table(input_ids[:, 1])
            return SequenceClassifierOutput(loss=nn.functional.cross_entropy(logits, labels), logits=logits)

    loader = tiny_loader(tiny_rows())
    torch.manual_seed(0)
    model = Bag()
    history = fit(model, loader, loader, TrainingConfig(learning_rate=0.3, epochs=9, device="cpu"))
    assert history.evaluations[-1]["accuracy"] > history.evaluations[0]["accuracy"] + 0.2
