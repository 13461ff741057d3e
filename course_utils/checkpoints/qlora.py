"""QLoRA in peft's format: a plain LoRA, which says nothing about how the backbone stores its weights.

So there is nothing to read here: `LoRAFormat` loads it, onto the backbone as you give it. Quantise that first, as in
training, `load(quantize(model), folder)`, to get the same numbers; onto the original weights it loads too, as in peft.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from course_utils.checkpoints.lora import LoRAFormat
from course_utils.methods.qlora import QLoRAConfig


class QLoRAFormat(LoRAFormat):
    """`QLoRAConfig` → peft's `LoraConfig`."""

    method = QLoRAConfig

    def reads(self, header: Mapping[str, Any]) -> bool:
        """Nothing: it is read as the plain LoRA that it is."""
        return False
