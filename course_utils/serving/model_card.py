"""A model card, written by code from the stored results, so that no number in it can be out of date.

The sections are those of Mitchell et al. (2019), "Model Cards for Model Reporting".
"""

from __future__ import annotations

from typing import Any

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
    """The card as Markdown.

    Args:
        stored: the content of `book/results/case_study.json`.

    Raises:
        ModelCardError: a stage is missing.
    """
    if missing := {"search", "final", "test", "transfer", "deploy"} - set(stored):
        raise ModelCardError(f"the results lack {', '.join(sorted(missing))}; run: python -m course_utils study-case")
    test, winner = stored["test"], stored["final"]["winner"]
    lora, words, majority = (test["models"][name] for name in ("lora", "words", "majority"))
    whole = test["slices"][0]
    weakest = sorted((row for row in test["slices"][1:] if row["n"]), key=lambda row: row["lora"]["accuracy"])[:3]
    away = [row for row in stored["transfer"]["domains"] if row["domain"] != "tweets"]
    forms = {row["name"]: row for row in stored["deploy"]["rows"]}
    lines = [
        "# Sentiment of English tweets",
        "",
        "## Model",
        "",
        f"Backbone `{stored['search']['backbone']}`, fine-tuned with LoRA on query and value: rank {winner['rank']}, "
        f"alpha {winner['alpha']:g}, learning rate {winner['learning_rate']:.2g}. {lora['trainable']:,} of "
        f"{test['total']:,} parameters were trained ({lora['share']:.2%}). Merged and exported: "
        f"{forms['float32']['megabytes']:.0f} MB, in int8 {forms['int8']['megabytes']:.0f} MB.",
        "",
        "## Intended use",
        "",
        "To sort English comments from social media into positive and negative, for counting and for sorting a queue. "
        "Texts below the stated confidence go to a person.",
        "",
        "## Not intended for",
        "",
        "Decisions about a person; other languages; texts without a sentiment (neutral texts were left out of the "
        "training, so the model has no answer for them).",
        "",
        "## Training data",
        "",
        f"Rated tweets of Hutto and Gilbert (2014), MIT licence. Label: the sign of the mean rating. "
        f"{test['n']['test']:,} tweets were kept for the test; duplicates were removed before the split.",
        "",
        "## How it was chosen",
        "",
        f"{stored['search']['budget']} settings tried on validation, the two best with three seeds; the lower mean "
        "validation loss won. The test split was used once.",
        "",
        "## Results",
        "",
        f"Accuracy on the test: {lora['mean']:.1%}, mean of {lora['seeds']} seeds (from {lora['lowest']:.1%} to "
        f"{lora['highest']:.1%}); 95% interval for {test['n']['test']} texts {lora['low']:.1%} to {lora['high']:.1%}. "
        f"Word counts {words['accuracy']['value']:.1%}, always the majority {majority['accuracy']['value']:.1%}.",
        "",
        "## Where it errs",
        "",
        "| texts | number | accuracy | 95% interval |",
        "|---|---|---|---|",
        *(_slice_line(row) for row in (whole, *weakest)),
        "",
        "## Limits",
        "",
        "Other kinds of text: "
        + ", ".join(f"{row['domain']} {row['lora']['accuracy']:.1%}" for row in away)
        + ". The tweets are from before 2014: newer words and emoji are unknown. Irony was not measured: "
        "the test holds too few cases. Whether groups "
        "of writers are treated alike was not measured, because the data do not say who wrote them.",
        "",
    ]
    return "\n".join(lines)


def _slice_line(row: dict[str, Any]) -> str:
    lora = row["lora"]
    return f"| {row['title']} | {row['n']} | {lora['accuracy']:.1%} | {lora['low']:.1%} to {lora['high']:.1%} |"


def missing_sections(card: str) -> list[str]:
    """The sections that a card lacks, or that have no text below their heading."""
    found = {}
    for part in card.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        found[title.strip()] = text.strip()
    return [title for title in SECTIONS if not found.get(title)]
