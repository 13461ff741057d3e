"""Figures of the chapter on prompt tuning."""

from __future__ import annotations

from collections.abc import Sequence

from course_utils.plots import quality
from course_utils.plots.style import COLOURS, Picture, make_axes


def seeds() -> Picture:
    """Prompt tuning between the head alone and full fine-tuning."""
    return quality.seeds(("head_only", "prompt", "prefix", "lora", "full"))


def rates() -> Picture:
    """LoRA and prompt tuning: the validation loss at each learning rate that was tried."""
    return quality.losses_by_rate(("lora", "prompt"))


def attention_mask(k: int = 3, texts: Sequence[int] = (5, 3)) -> Picture:
    """The positions of two texts in one batch: virtual tokens, text and padding.

    Args:
        k: virtual tokens.
        texts: the number of tokens of each text, [CLS] and [SEP] included.
    """
    figure, axes = make_axes(7.2, 0.9 * len(texts) + 0.9)
    longest = max(texts)
    for row, tokens in enumerate(texts):
        words = ["[CLS]", *(f"w{number}" for number in range(1, tokens - 1)), "[SEP]"]
        cells = [*(f"P{number}" for number in range(1, k + 1)), *words, *(["[PAD]"] * (longest - tokens))]
        for place, cell in enumerate(cells):
            colour = COLOURS[4] if place < k else "#DDDDDD" if cell == "[PAD]" else COLOURS[5]
            axes.barh(row, 0.94, left=place - 0.47, height=0.7, color=colour)
            axes.text(place, row, f"{cell}\nmask {0 if cell == '[PAD]' else 1}", ha="center", va="center", fontsize=9)
    axes.set(xlabel="position", ylim=(len(texts) - 0.5, -0.5), xlim=(-0.6, k + longest - 0.4))
    axes.set_xticks(range(k + longest))
    axes.set_yticks(range(len(texts)), [f"text {number}" for number in range(1, len(texts) + 1)])
    axes.grid(visible=False)
    lengths = " and ".join(map(str, texts))
    return Picture(
        figure,
        f"A row of cells for each text of {lengths} tokens. Positions 0 to {k - 1} hold the virtual tokens, with mask "
        f"1; position {k} holds [CLS]; the rest of the text follows, with mask 1, and then the padding, with mask 0.",
    )
