"""Prefix tuning: learn keys and values that every layer attends to beside those of the text.

Li & Liang 2021, arXiv:2101.00190. P-Tuning v2 (Liu et al. 2022, arXiv:2110.07602) is the same for understanding tasks.
An attention head computes ``softmax(q Kᵀ / √d) V``. Prefix tuning freezes the model and puts k learnt rows in front::

    softmax(q [P_K; K]ᵀ / √d) [P_V; V]        P_K, P_V: (k, d) for each head of each layer

    table: (k, 2 · layers · width)            all of them side by side, width = heads of the keys · d
    table = E                                 direct: the table itself is trained
    table = W₂ tanh(W₁ E + b₁) + b₂           reparameterised: a small network computes it, E: (k, width)

The rows belong to no word, so they are called virtual tokens. The text follows them at positions k, k + 1, ...: a BERT
with 512 positions reads 512 - k tokens. Padding on the left does not count (in peft it does, and changes the result);
where layers see a window of the last positions only, it is refused once it would push the prefix out of the window.

In an encoder-decoder the rows stand in the decoder's attention to what it has written, as in peft.

E is drawn from N(0, 1), as in peft. No initialisation leaves the model as it was: a row of zeros has the score 0, and
its share of the attention, ``e⁰ / (k e⁰ + Σ e^score)``, is taken from the text.

The direct table is ``k · 2 · layers · width`` numbers (BERT-base, k = 20: 368,640). The paper found it hard to train
and used the network (14,780,160), which is thrown away after training: only its table is needed then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from course_utils.methods.base import trainable_dtype
from course_utils.methods.errors import MethodError, check_share, check_whole_number
from course_utils.methods.prefix_body import PrefixBody, PrefixDecoder, PrefixTable, check_prefix, prefix_shape
from course_utils.methods.virtual_tokens import find_stack, is_encoder_decoder, word_embeddings
from course_utils.methods.wrapping import WrappingConfig

INITIALISATIONS = ("normal", "zero")

#: what transformers' configurations call the dropout on the weights of the attention
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


@dataclass(frozen=True)
class PrefixTuningConfig(WrappingConfig):
    """The settings of prefix tuning.

    Args:
        virtual_tokens: the length k of the prefix; at least 1.
        reparameterize: compute the table with a network while training, as in the paper.
        mid_dim: width of that network; None means the width of the keys, as in peft (the authors' code takes 512).
        init: "normal", or "zero" for a table of zeros, which is milder but no identity either: see above. All its rows
            are equal and get equal gradients, so they stay one virtual token, counted k times, unless the network, or
            dropout on the prefix or the attention, tells them apart. Where none of these is there, zeros are refused.
    """

    name: ClassVar[str] = "prefix tuning"
    virtual_tokens: int = 20
    reparameterize: bool = False
    mid_dim: int | None = None
    init: str = "normal"

    def __post_init__(self) -> None:
        check_whole_number(self.virtual_tokens, "virtual_tokens")
        if self.init not in INITIALISATIONS:
            raise MethodError(f"init must be one of {', '.join(INITIALISATIONS)}, got {self.init!r}")
        if self.mid_dim is not None:
            check_whole_number(self.mid_dim, "mid_dim")
            if not self.reparameterize:
                raise MethodError("mid_dim is the width of the network, which is off; set reparameterize=True with it")

    def wrappers(self, model: nn.Module) -> dict[str, PrefixBody]:
        """The body of the model in a `PrefixBody`, or the decoder in a `PrefixDecoder`."""
        name, body = find_stack(model, "decoder")
        check_prefix(body, self.virtual_tokens)
        self._check_that_rows_can_differ(body)
        layers, heads, head_size = prefix_shape(body.config)
        encoder = PrefixEncoder(self, 2 * layers * heads * head_size, heads * head_size)
        words = word_embeddings(body)
        encoder.to(words.weight.device, trainable_dtype(words.weight))
        wrapper = PrefixDecoder if is_encoder_decoder(model) else PrefixBody
        return {name: wrapper(body, encoder, self.dropout_of_prefix())}

    def _check_that_rows_can_differ(self, body: nn.Module) -> None:
        if self.init != "zero" or self.virtual_tokens == 1 or self.reparameterize or self.dropout_of_prefix():
            return
        if not any(getattr(body.config, name, 0.0) for name in ATTENTION_DROPOUT):
            raise MethodError(
                f"init='zero' makes all {self.virtual_tokens} virtual tokens equal, and a model without dropout on the "
                "attention can never tell them apart: it would train one; take init='normal', or "
                "PTuningV2Config(init='zero'), whose dropout makes them differ"
            )

    def dropout_of_prefix(self) -> float:
        """Share of the numbers of the prefix that are set to zero while training."""
        return 0.0


@dataclass(frozen=True)
class PTuningV2Config(PrefixTuningConfig):
    """The settings of P-Tuning v2: prefix tuning for classifiers, direct, with dropout on the prefix.

    Args:
        dropout: share of the numbers in the keys and values that are set to zero while training, from 0 to below 1.
    """

    name: ClassVar[str] = "P-Tuning v2"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.dropout, "dropout")

    def dropout_of_prefix(self) -> float:
        """The setting `dropout`."""
        return self.dropout


class PrefixEncoder(PrefixTable):
    """The table of all keys and values, or the network that computes it. Named and drawn as in peft.

    Args:
        config: the settings.
        columns: of the table, 2 · layers · width.
        width: numbers in the keys of one token in one layer.
    """

    def __init__(self, config: PrefixTuningConfig, columns: int, width: int) -> None:
        super().__init__(config.virtual_tokens)
        if config.reparameterize:
            mid_dim = config.mid_dim or width
            self.embedding = nn.Embedding(config.virtual_tokens, width)  # N(0, 1)
            self.transform = nn.Sequential(nn.Linear(width, mid_dim), nn.Tanh(), nn.Linear(mid_dim, columns))
        else:
            self.embedding = nn.Embedding(config.virtual_tokens, columns)
            self.transform = nn.Sequential()  # returns what it gets
        if config.init == "zero":
            last = self.transform[-1] if config.reparameterize else self.embedding
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self) -> torch.Tensor:  # → (k, 2 · layers · width)
        """The table, which is the same for all texts."""
        table: torch.Tensor = self.transform(self.embedding.weight)
        return table
