"""Students: what is cut out of a teacher, how it is trained in the course's loop, and the recipe for few labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from models import LAYERS, make, make_batch
from torch import nn
from transformers import PreTrainedTokenizerBase

from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.distillation import (
    NO_LABEL,
    DistillationConfig,
    DistillationError,
    Distilled,
    FewShotConfig,
    attention_loss,
    cut_layers,
    draw_labels,
    encoder_parameters,
    few_shot_student,
    hidden_state_loss,
    people_logits,
    small_student,
    soft_label_loss,
    teacher_logits,
    with_teacher,
    without_labels,
)
from course_utils.models.backbones import load_classifier
from course_utils.training import TrainingConfig, fit


def texts(rows: int = 12) -> Dataset:
    words = ["good", "bad", "a good day", "a very bad film", "nice and good", "sad"]
    return Dataset.from_dict(
        {"text": [words[row % 6] + " so" * (row % 5) for row in range(rows)], "label": [1, 0] * (rows // 2)}
    )


def small(tokenizer: PreTrainedTokenizerBase, seed: int = 0, **sizes: Any) -> Any:
    """A tiny random model with the real vocabulary."""
    model, _ = load_classifier(pretrained=False)
    return small_student(model, seed=seed, **{"layers": 2, "width": 16, "heads": 2, **sizes})


# --- where students come from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_cut_student_computes_what_the_layers_of_the_teacher_compute(kind: str) -> None:
    teacher, batch = make(kind), make_batch(kind)
    student = cut_layers(teacher, (1,)).eval()
    with torch.no_grad():
        whole = teacher(**batch, output_hidden_states=True)
        cut = student(**batch, output_hidden_states=True)
    assert len(whole.hidden_states) == LAYERS + 1 and len(cut.hidden_states) == 2
    assert torch.equal(cut.hidden_states[1], whole.hidden_states[1])
    assert torch.equal(cut_layers(teacher, (1, 2)).eval()(**batch).logits, whole.logits)
    assert encoder_parameters(student) == encoder_parameters(teacher) / LAYERS


def test_a_cut_student_shares_nothing_and_can_be_trained() -> None:
    teacher = make("bert").requires_grad_(False)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student = cut_layers(teacher, (2,))
    assert student.training and all(parameter.requires_grad for parameter in student.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert (student.config.num_hidden_layers, teacher.config.num_hidden_layers) == (1, LAYERS)


@pytest.mark.parametrize("layers", [(), (0,), (3,), (2, 1), (1, 1)])
def test_layers_that_are_not_there_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(DistillationError, match="expected layers from 1 to 2 in rising order"):
        cut_layers(make("bert"), layers)


def test_a_small_student_has_the_sizes_that_were_asked_for_and_the_same_start_each_time() -> None:
    teacher = make("bert")
    student = small_student(teacher, layers=1, width=8, heads=2, seed=3)
    assert student.config.hidden_size == 8 and teacher.config.hidden_size == 32
    assert student(**make_batch("bert")).logits.shape == teacher(**make_batch("bert")).logits.shape
    again = small_student(teacher, layers=1, width=8, heads=2, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))
    with pytest.raises(DistillationError, match="a multiple of the heads; got 2 layers, a width of 10 and 4 heads"):
        small_student(teacher, width=10, heads=4)


# --- the loss that a student learns by --------------------------------------------------------------------------------


def test_the_loss_is_the_sum_of_its_parts() -> None:
    teacher, student, batch = make("bert"), cut_layers(make("bert", seed=1), (2,)), make_batch("bert")
    config = DistillationConfig(hard=0.25, temperature=3.0, hidden=0.5, attention=2.0)
    learner = Distilled(student, config, teacher)
    found = learner(**batch)
    inside = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        theirs, mine = teacher(**batch, **inside), student(**batch, **inside)
    mask = batch["attention_mask"]
    expected = (
        0.25 * nn.functional.cross_entropy(mine.logits, batch["labels"])
        + 0.75 * soft_label_loss(mine.logits, theirs.logits, 3.0)
        + 0.5 * hidden_state_loss(mine.hidden_states[1:], theirs.hidden_states[2:], mask)
        + 2.0 * attention_loss(mine.attentions, theirs.attentions[1:], mask)
    )
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_stored_answers_and_a_teacher_that_is_asked_are_the_same() -> None:
    teacher, batch = make("bert"), make_batch("bert")
    config = DistillationConfig(hard=0)
    stored = {**batch, "teacher_logits": teacher(**batch).logits.detach()}
    asked = Distilled(cut_layers(teacher, (1,)), config, teacher)(**batch).loss
    assert torch.equal(asked, Distilled(cut_layers(teacher, (1,)), config)(**stored).loss)


def test_labels_only_never_ask_a_teacher() -> None:
    student, batch = cut_layers(make("bert"), (1,)), make_batch("bert")
    assert torch.allclose(Distilled(student, DistillationConfig(hard=1))(**batch).loss, student(**batch).loss)


def test_the_teacher_stays_in_evaluation_mode_and_is_not_trained() -> None:
    teacher = make("bert", dropout=0.5).train()
    learner = Distilled(cut_layers(teacher, (1,)), DistillationConfig(hard=0), teacher).train()
    assert learner.student.training and not teacher.training
    assert {name.split(".")[0] for name, p in learner.named_parameters() if p.requires_grad} == {"student"}
    assert not learner.eval().student.training


def test_evaluated_it_is_the_student() -> None:
    student, batch = cut_layers(make("bert"), (1,)), make_batch("bert")
    learner = Distilled(student, DistillationConfig(hard=0)).eval()
    found = learner(**batch)
    assert found.loss is None and torch.equal(found.logits, student(**batch).logits)


def test_dropped_attention_does_not_make_the_loss_infinite() -> None:
    teacher = make("bert", dropout=0.5)
    learner = Distilled(cut_layers(teacher, (1,)), DistillationConfig(hard=0, attention=1), teacher).train()
    assert 0 < learner(**make_batch("bert")).loss.item() < 100


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hard": 1.5}, "a share from 0 to 1, got 1.5"),
        ({"temperature": 0.0}, "a temperature above 0"),
        ({"hidden": -1.0}, "weights are 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(DistillationError, match=said):
        DistillationConfig(**settings)  # type: ignore[arg-type]


def test_what_is_missing_is_named() -> None:
    student, teacher, batch = cut_layers(make("bert"), (1,)), make("bert"), make_batch("bert")
    with pytest.raises(DistillationError, match="give the teacher itself"):
        Distilled(student, DistillationConfig(hidden=1))
    with pytest.raises(DistillationError, match=r"hold no teacher_logits: make the loader with with_teacher\(\)"):
        Distilled(student)(**batch)
    with pytest.raises(DistillationError, match=r"expected 1 numbers from 1 to 2, got \(1, 2\)"):
        Distilled(student, DistillationConfig(hidden=1, layers=(1, 2)), teacher)


# --- the teacher's answers --------------------------------------------------------------------------------------------


def test_stored_answers_stand_beside_their_own_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    teacher, dataset = small(tokenizer).eval(), texts()
    answers = teacher_logits(teacher, dataset, tokenizer)
    for row, text in enumerate(dataset["text"]):
        alone = teacher(**tokenizer([text], return_tensors="pt")).logits[0]
        assert torch.allclose(answers[row], alone, atol=1e-5)
    loader = with_teacher(make_loader(dataset, tokenizer, 5, shuffle=True, seed=1), answers)
    seen = 0
    for batch in loader:
        found = teacher(batch["input_ids"], batch["attention_mask"]).logits
        assert torch.allclose(batch["teacher_logits"], found, atol=1e-5)
        seen += len(found)
    assert seen == len(dataset)


def test_answers_to_other_texts_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DistillationError, match=r"for 12 texts, got \(11, 2\)"):
        with_teacher(make_loader(texts(), tokenizer, 4), torch.zeros(11, 2))


def test_a_student_comes_closer_to_its_teacher_in_the_course_s_loop(tokenizer: PreTrainedTokenizerBase) -> None:
    teacher, dataset = small(tokenizer).eval(), texts(24)
    with torch.no_grad():
        teacher.classifier.weight.mul_(50)
    answers = teacher_logits(teacher, dataset, tokenizer)
    student = small(tokenizer, seed=1, layers=1)
    judged = Dataset.from_dict({"text": dataset["text"], "label": answers.argmax(1).tolist()})
    plain = make_loader(judged, tokenizer, 8, shuffle=True)
    before = soft_label_loss(teacher_logits(student, dataset, tokenizer), answers).item()
    config = TrainingConfig(learning_rate=1e-2, epochs=20, device="cpu")
    history = fit(Distilled(student, DistillationConfig(hard=0)), with_teacher(plain, answers), plain, config)
    after = soft_label_loss(teacher_logits(student, dataset, tokenizer), answers).item()
    assert after < 0.5 * before and len(history.evaluations) == 20


# --- few labels -------------------------------------------------------------------------------------------------------


def test_few_labels_are_drawn_with_the_classes_at_their_shares() -> None:
    dataset = Dataset.from_dict({"text": ["x"] * 100, "label": [1] * 75 + [0] * 25})
    rows = draw_labels(dataset, 16, seed=1)
    assert len(set(rows)) == 16 and sum(dataset["label"][row] for row in rows) == 12
    assert rows == draw_labels(dataset, 16, seed=1) != draw_labels(dataset, 16, seed=2)
    hidden = without_labels(dataset, rows)
    assert [row for row, label in enumerate(hidden["label"]) if label != NO_LABEL] == rows
    with pytest.raises(DistillationError, match="expected 2 to 98 labels of 100 texts, got 1"):
        draw_labels(dataset, 1)


def test_people_vote_and_an_undecided_one_is_added() -> None:
    tweets = load_sentiment()["test"].select(range(20))
    shares = torch.softmax(people_logits(tweets), -1)
    for row, (votes, share) in enumerate(zip(tweets["ratings"], tweets["soft_label"], strict=True)):
        expected = (share * len(votes) + 0.5) / (len(votes) + 1)
        assert shares[row, 1].item() == pytest.approx(expected, abs=1e-6)
    assert 0 < shares.min() < shares.max() < 1


def test_the_recipe_trains_with_and_without_a_teacher(tokenizer: PreTrainedTokenizerBase) -> None:
    dataset = texts(16)
    few = without_labels(dataset, [0, 1, 2, 3])
    validation = make_loader(dataset, tokenizer, 8)
    answers = teacher_logits(small(tokenizer), dataset, tokenizer)
    config = FewShotConfig(passes=1, tune_steps=2, tune_batch_size=2)
    found = []
    for logits in (answers, None):
        student = small(tokenizer, seed=1, layers=1)
        start = [parameter.detach().cpu().clone() for parameter in student.parameters()]
        assert few_shot_student(student, few, logits, tokenizer, validation, config) is student
        assert any(not torch.equal(a, b.cpu()) for a, b in zip(start, student.parameters(), strict=True))
        found.append(teacher_logits(student, dataset, tokenizer))
    assert not torch.allclose(found[0], found[1])


def test_a_recipe_that_cannot_be_cooked_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DistillationError, match="set passes and tune_steps instead"):
        FewShotConfig(learn=TrainingConfig(epochs=3))
    with pytest.raises(DistillationError, match="expected at least 1 pass"):
        FewShotConfig(passes=0)
    with pytest.raises(DistillationError, match="no text has a label"):
        few_shot_student(
            small(tokenizer), without_labels(texts(), []), None, tokenizer, make_loader(texts(), tokenizer, 4)
        )
