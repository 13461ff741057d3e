"""The drawings: each word stands in its box and on the sheet, and can be read on a phone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import FancyBboxPatch

from course_utils.plots import drawings

DRAWINGS = [drawings.block, drawings.lora, drawings.qlora, drawings.kept, drawings.distillation]
#: Pixels of CSS: the text column of a phone 390 wide, and the smallest letters that are read there without zooming.
PHONE, SMALLEST = 358, 9.5


@pytest.mark.parametrize("draw", DRAWINGS)
def test_each_word_stands_in_its_box_and_can_be_read_on_a_phone(draw: object) -> None:
    picture = draw()  # type: ignore[operator]
    figure = picture.figure
    figure.draw_without_rendering()
    axes = figure.axes[0]
    sheet, pixels = figure.bbox, PHONE / figure.get_figwidth() / 72
    boxes = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    for text in axes.texts:
        x0, y0, x1, y1 = text.get_window_extent().extents
        assert text.get_fontsize() * pixels >= SMALLEST, text.get_text()
        assert sheet.x0 <= x0 and x1 <= sheet.x1 and sheet.y0 <= y0 and y1 <= sheet.y1, text.get_text()
        around = [box for box in boxes if box.contains((x0 + x1) / 2, (y0 + y1) / 2)]
        assert all(box.x0 <= x0 and x1 <= box.x1 and box.y0 <= y0 and y1 <= box.y1 for box in around), text.get_text()
    assert len(boxes) >= 6 and len(picture.alt) > 100
    plt.close(figure)


def test_the_numbers_of_the_drawing_are_the_layers() -> None:
    words = {text.get_text() for text in drawings.lora().figure.axes[0].texts}
    assert {"W\n384 × 384\n= 147,456", "A: 8 × 384 = 3,072", "B: 384 × 8 = 3,072"} <= words
    plt.close("all")
