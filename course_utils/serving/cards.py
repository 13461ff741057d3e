"""A model card, written by code from the stored results, so that no number in it can be out of date.

The sections are those of Mitchell et al. (2019), "Model Cards for Model Reporting".
"""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from course_utils.errors import CourseError

#: What a card must say; `missing_sections` looks for these headings.
SECTIONS = (
    "Model",
    "Intended use",
    "Not intended for",
    "Training data",
    "How it was chosen",
    "Results",
    "Where it errs",
    "Limits",
)


class ModelCardError(CourseError, ValueError):
    """The card cannot be written from these results."""


def model_card(stored: dict[str, Any]) -> str:
    """The card as Markdown: first what the Hub's search and widgets read, then a section for each of `SECTIONS`.

    Args:
        stored: the content of `book/results/case_study.json`.

    Raises:
        ModelCardError: a stage is missing.
    """
    if missing := {"search", "final", "test", "transfer", "deploy"} - set(stored):
        raise ModelCardError(f"the results lack {', '.join(sorted(missing))}; run: python -m course_utils study-case")
    test = stored["test"]
    texts = (
        _model(stored),
        "To sort English comments from social media into positive and negative, for counting and for sorting a queue. "
        "Texts below the stated confidence go to a person.",
        "Decisions about a person; other languages; texts without a sentiment (neutral texts were left out of the "
        "training, so the model has no answer for them).",
        f"Rated tweets of Hutto and Gilbert (2014), MIT licence. Label: the sign of the mean rating. "
        f"{test['n']['test']:,} tweets were kept for the test; duplicates were removed before the split.",
        f"{stored['search']['budget']} settings tried on validation, the two best with three seeds; the lower mean "
        "validation loss won. The test split was used once.",
        _results(test),
        _weakest_slices(test["slices"]),
        _limits(stored["transfer"]["domains"]),
    )
    sections = [f"## {title}\n\n{text}\n" for title, text in zip(SECTIONS, texts, strict=True)]
    return "\n".join([f"---\n{_metadata(test).to_yaml()}\n---\n", f"# {_NAME}\n", *sections])


_NAME = "Sentiment of English tweets"


def _metadata(test: dict[str, Any]) -> ModelCardData:
    """What the Hub reads. Its model index names one number: the accuracy on the test, the mean over the seeds."""
    result = EvalResult(
        task_type="text-classification",
        dataset_type="rated-tweets",
        dataset_name="Rated tweets of Hutto and Gilbert (2014), two classes",
        dataset_split="test",
        metric_type="accuracy",
        metric_value=round(test["models"]["lora"]["mean"], 4),
    )
    return ModelCardData(
        model_name=_NAME,
        language="en",
        license="apache-2.0",  # the backbone's, of which this is a version
        base_model="sentence-transformers/all-MiniLM-L6-v2",
        library_name="onnx",
        pipeline_tag="text-classification",
        tags=["lora", "sentiment"],
        eval_results=[result],
    )


def _model(stored: dict[str, Any]) -> str:
    test, winner = stored["test"], stored["final"]["winner"]
    lora, forms = test["models"]["lora"], {row["name"]: row for row in stored["deploy"]["rows"]}
    return (
        f"Backbone `{stored['search']['backbone']}`, fine-tuned with LoRA on query and value: rank {winner['rank']}, "
        f"alpha {winner['alpha']:g}, learning rate {winner['learning_rate']:.2g}. {lora['trainable']:,} of "
        f"{test['total']:,} parameters were trained ({lora['share']:.2%}). Merged and exported: "
        f"{forms['float32']['megabytes']:.0f} MB, in int8 {forms['int8']['megabytes']:.0f} MB."
    )


def _results(test: dict[str, Any]) -> str:
    lora, words, majority = (test["models"][name] for name in ("lora", "words", "majority"))
    return (
        f"Accuracy on the test: {lora['mean']:.1%}, mean of {lora['seeds']} seeds (from {lora['lowest']:.1%} to "
        f"{lora['highest']:.1%}); 95% interval for {test['n']['test']} texts {lora['low']:.1%} to {lora['high']:.1%}. "
        f"Word counts {words['accuracy']['value']:.1%}, always the majority {majority['accuracy']['value']:.1%}."
    )


def _weakest_slices(slices: list[dict[str, Any]]) -> str:
    """A table of the whole test and of the three slices with the lowest accuracy."""
    whole, *parts = slices
    weakest = sorted((row for row in parts if row["n"]), key=lambda row: row["lora"]["accuracy"])[:3]
    lines = ["| texts | number | accuracy | 95% interval |", "|---|---|---|---|"]
    for row in (whole, *weakest):
        lora = row["lora"]
        interval = f"{lora['low']:.1%} to {lora['high']:.1%}"
        lines.append(f"| {row['title']} | {row['n']} | {lora['accuracy']:.1%} | {interval} |")
    return "\n".join(lines)


def _limits(domains: list[dict[str, Any]]) -> str:
    away = [f"{row['domain']} {row['lora']['accuracy']:.1%}" for row in domains if row["domain"] != "tweets"]
    return (
        f"Other kinds of text: {', '.join(away)}. The tweets are from before 2014: newer words and emoji are unknown. "
        "Irony was not measured: the test holds too few cases. Whether groups of writers are treated alike was not "
        "measured, because the data do not say who wrote them."
    )


def missing_sections(card: str) -> list[str]:
    """The sections that a card lacks, or that have no text below their heading."""
    found = {}
    for part in card.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        found[title.strip()] = text.strip()
    return [title for title in SECTIONS if not found.get(title)]
