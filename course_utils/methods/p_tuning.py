"""P-Tuning: compute the k vectors before the text with a small network (Liu et al. 2021, arXiv:2103.10385).

::

    [P; E(x)]                    P: (k, hidden)    E(x): (tokens, hidden)

    P = MLP(T)                   T: (k, hidden), a trained table
    P = MLP(BiLSTM(T))

T and the encoder are trained; after training only P is needed. All is drawn at random, so the model's answers change at
once. How the vectors get into the model, and where that differs from peft, says `prompt_body`.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from course_utils.methods.errors import MethodError, check_choice, check_share, check_whole_number
from course_utils.methods.prompt_body import VirtualPromptConfig


@dataclass(frozen=True)
class PTuningConfig(VirtualPromptConfig):
    """The settings of P-Tuning.

    Args:
        encoder: "mlp", three linear layers, or "lstm", a bidirectional LSTM and two linear layers, as in the paper.
        hidden: width of the encoder; None means the model's own. (The paper's LSTM has half of that.)
        lstm_layers: layers of the LSTM; the MLP does not use it.
        lstm_dropout: dropout between the layers of the LSTM, from 0 to below 1; the MLP does not use it.
    """

    name: ClassVar[str] = "P-Tuning"
    encoder: str = "mlp"
    hidden: int | None = None
    lstm_layers: int = 2
    lstm_dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self.encoder, "encoder", ("mlp", "lstm"))
        if self.hidden is not None:
            check_whole_number(self.hidden, "hidden")
        check_whole_number(self.lstm_layers, "lstm_layers")
        check_share(self.lstm_dropout, "lstm_dropout")
        if self.lstm_dropout and self.lstm_layers == 1:
            raise MethodError("lstm_dropout acts between the layers of the LSTM, and lstm_layers=1 leaves no between")

    def new_prompt(self, words: nn.Embedding) -> nn.Module:
        """The encoder, drawn at random."""
        return PromptEncoder(words.embedding_dim, self)


class PromptEncoder(nn.Module):
    """P-Tuning: P is computed from a trained table by a trained encoder. Its layers are called as in peft.

    Args:
        size: of the model's token embeddings.
        config: the settings.
    """

    def __init__(self, size: int, config: PTuningConfig) -> None:
        super().__init__()
        hidden = config.hidden or size
        self.embedding = nn.Embedding(config.virtual_tokens, size)  # T, drawn from N(0, 1)
        self.lstm_head: nn.LSTM | None = None
        if config.encoder == "mlp":
            layers = [nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, size)]
        else:
            self.lstm_head = nn.LSTM(
                size, hidden, config.lstm_layers, dropout=config.lstm_dropout, bidirectional=True, batch_first=True
            )
            layers = [nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, size)]
        self.mlp_head = nn.Sequential(*layers)

    def forward(self) -> torch.Tensor:  # (k, hidden)
        """Compute P."""
        rows = self.embedding.weight.unsqueeze(0)  # (1, k, hidden): one text of k tokens
        if self.lstm_head is not None:
            # In evaluation mode cuDNN computes no gradients of an LSTM; PyTorch's own kernels do.
            without = torch.is_grad_enabled() and not self.training
            with torch.backends.cudnn.flags(enabled=False) if without else nullcontext():
                rows, _ = self.lstm_head(rows)  # (1, k, 2 · width), from left to right, and from right to left
        prompt: torch.Tensor = self.mlp_head(rows)
        return prompt.squeeze(0)
