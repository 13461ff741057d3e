"""Prompt tuning, P-Tuning, prefix tuning and P-Tuning v2 in peft's format: all virtual tokens as one table.

peft keeps one table, `prompt_embeddings`, whatever computed it, and drops the network that did. Ours goes into a second
file, `prompt_encoder.safetensors`, so that training can go on; the two must agree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from course_utils.checkpoints.errors import CheckpointError
from course_utils.checkpoints.formats import Format, Header, Tensors
from course_utils.methods import MethodConfig
from course_utils.methods.p_tuning import PromptEncoder, PTuningConfig
from course_utils.methods.prefix import PrefixEncoder
from course_utils.methods.prefix_body import prefix_shape
from course_utils.methods.prompt_body import pools_first_token
from course_utils.methods.prompts import PromptTuningConfig
from course_utils.methods.virtual_tokens import find_stack, is_encoder_decoder, word_embeddings

#: What peft puts before the name of a module of the model, for methods that wrap no layer.
_PREFIX = "base_model."
_TABLE = "prompt_embeddings"
ENCODER_FILE = "prompt_encoder.safetensors"


class VirtualTokensFormat(Format):
    """A table of virtual tokens, the head, and perhaps the encoder that computes the table."""

    #: What the wrapper of the body calls the module that makes the table.
    part: ClassVar[str]
    #: Which part of an encoder-decoder the wrapper stands around.
    stack: ClassVar[str]

    def new_encoder(self, config: Any, model: nn.Module, columns: int) -> nn.Module | None:
        """A fresh encoder for these settings, to try stored weights on; None if the table itself is trained."""
        return None

    def to_peft(self, tensors: Tensors, model: nn.Module) -> dict[str, torch.Tensor]:
        """The table that the model computes, and the head."""
        name, body = find_stack(model, self.stack)
        head = {
            _PREFIX + key.replace(f"{name}.base.", f"{name}.", 1): tensor
            for key, tensor in tensors.items()
            if not key.startswith(f"{name}.{self.part}.")
        }
        return {_TABLE: self.table_to_peft(self.table(getattr(body, self.part)), model)} | head

    def from_peft(self, tensors: Tensors, model: nn.Module, config: Any) -> dict[str, torch.Tensor]:
        """The head under our names; and the table, or the encoder, which must compute the table."""
        name, _ = find_stack(model, self.stack)
        head: dict[str, torch.Tensor] = {}
        encoder: dict[str, torch.Tensor] = {}
        for key, tensor in tensors.items():
            own = key.removeprefix(_PREFIX)
            if key.startswith(_PREFIX):
                head[own.replace(f"{name}.", f"{name}.base.", 1) if own.startswith(f"{name}.") else own] = tensor
            elif key != _TABLE:
                encoder[key] = tensor
        table = tensors.get(_TABLE)
        if table is not None and table.ndim == 2:
            table = self.table_from_peft(table, model, config)
        columns = table.shape[1] if table is not None and table.ndim == 2 else 1
        with torch.random.fork_rng(devices=[]):  # its first weights are replaced at once
            module = self.new_encoder(config, model, columns)
        if module is None:
            if encoder:
                key = next(iter(encoder))
                raise CheckpointError(f"unexpected key {key!r}: expected {_TABLE!r}, and {_PREFIX!r} before all others")
            return head if table is None else head | {f"{name}.{self.part}.embedding.weight": table}
        self._check(module, encoder, table)
        return head | {f"{name}.{self.part}.{key}": tensor for key, tensor in encoder.items()}

    def table_to_peft(self, table: torch.Tensor, model: nn.Module) -> torch.Tensor:
        """Our table as peft reads it."""
        return table

    def table_from_peft(self, table: torch.Tensor, model: nn.Module, config: Any) -> torch.Tensor:
        """peft's table as ours has it."""
        return table

    def _check(self, module: nn.Module, encoder: Tensors, table: torch.Tensor | None) -> None:
        try:
            module.load_state_dict(encoder)
        except RuntimeError as error:
            raise CheckpointError(f"{ENCODER_FILE} does not fit the settings: {error}") from error
        computed = self.table(module)
        if table is None or table.shape != computed.shape:
            raise CheckpointError(f"{_TABLE} is missing, or not of the shape {tuple(computed.shape)}")
        tolerance = 1e-4 if table.dtype == torch.float32 else 5e-2  # the encoder is computed in float32 here
        if (computed - table.float()).norm() > tolerance * computed.norm():
            raise CheckpointError(
                f"{ENCODER_FILE} does not compute {_TABLE}: the two files are of different checkpoints. Delete "
                f"{ENCODER_FILE} to load the table as it is"
            )

    @torch.no_grad()
    def table(self, module: nn.Module) -> torch.Tensor:
        """The table as it is after training, without the encoder's dropout."""
        training = module.training
        table: torch.Tensor = module.eval()()
        module.train(training)
        return table.detach().cpu().clone().contiguous()

    def extra_tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The encoder, its tensors called as in peft's own; nothing if the table is trained itself."""
        tensors = getattr(find_stack(model, self.stack)[1], self.part).state_dict()
        if set(tensors) == {"embedding.weight"}:
            return {}
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


class PromptFormat(VirtualTokensFormat):
    """What a row cannot say of prompt tuning: which position a classifier of the BERT family reads.

    peft's reads the first virtual token. Where ours reads [CLS], the header says so in one setting more, `pool`, and
    peft warns that it does not know it. See `VirtualPromptConfig.pool`.
    """

    part = "prompt"
    stack = "encoder"

    def header(self, model: nn.Module, config: Any) -> dict[str, Any]:
        """peft's names, the sizes of the model, and `pool` where ours differs from peft."""
        stack: Any = find_stack(model, self.stack)[1]
        text = stack.config.get_text_config()
        sizes = {
            "token_dim": word_embeddings(stack.base).embedding_dim,
            "num_layers": getattr(text, "num_hidden_layers", 1),  # this and the heads count only for prefixes
            "num_attention_heads": getattr(text, "num_attention_heads", 1),
        }
        pool = {"pool": config.pool} if pools_first_token(model) and config.pool != "peft" else {}
        return super().header(model, config) | sizes | pool

    def table_from_peft(self, table: torch.Tensor, model: nn.Module, config: Any) -> torch.Tensor:
        """In an encoder-decoder peft has k rows more for the decoder, which it never uses."""
        k = config.virtual_tokens
        return table[:k].contiguous() if is_encoder_decoder(model) and len(table) == 2 * k else table

    def read(self, header: Header, model: nn.Module) -> dict[str, Any]:
        """Our settings; a header without `pool` is peft's own."""
        if header.get("num_transformer_submodules") == 2 and not is_encoder_decoder(model):
            raise CheckpointError(
                f"num_transformer_submodules=2 is for an encoder and decoder, and {type(model).__name__} is not both"
            )
        pool = header.get("pool", "peft" if pools_first_token(model) else "text")
        return super().read(header, model) | {"pool": pool}


class PTuningFormat(PromptFormat):
    """What a row cannot say of P-Tuning: the encoder, whose width may be the model's."""

    def header(self, model: nn.Module, config: Any) -> dict[str, Any]:
        """peft's names, the width of the encoder as a number."""
        width = find_stack(model, self.stack)[1].prompt.embedding.embedding_dim  # type: ignore[union-attr]
        return super().header(model, config) | {"encoder_hidden_size": config.hidden or width}

    def without_extra(self, config: Any) -> MethodConfig:
        """The table alone is a prompt like any other: it computes the same, and could be trained on as it is."""
        return PromptTuningConfig(
            virtual_tokens=config.virtual_tokens, init="random", pool=config.pool, head=config.head
        )

    def new_encoder(self, config: Any, model: nn.Module, columns: int) -> nn.Module | None:
        """The encoder, if there is one: without the second file `config` is that of prompt tuning."""
        return PromptEncoder(columns, config) if isinstance(config, PTuningConfig) else None


class PrefixFormat(VirtualTokensFormat):
    """What a row cannot say of prefix tuning: the sizes of the model, and the network."""

    part = "prefix"
    stack = "decoder"

    def header(self, model: nn.Module, config: Any) -> dict[str, Any]:
        """peft's names, and the sizes of the model."""
        sizes = _sizes(model)
        return super().header(model, config) | sizes | {"encoder_hidden_size": config.mid_dim or sizes["token_dim"]}

    def read(self, header: Header, model: nn.Module) -> dict[str, Any]:
        """Our settings; the sizes must be those of the model."""
        for setting, size in _sizes(model).items():
            if header.get(setting) not in (None, size):
                raise CheckpointError(f"{setting} is {header[setting]} in the checkpoint and {size} in the model")
        settings = super().read(header, model)
        return settings | {"mid_dim": header.get("encoder_hidden_size") if settings["reparameterize"] else None}

    def table_to_peft(self, table: torch.Tensor, model: nn.Module) -> torch.Tensor:
        """In an encoder-decoder peft gives layer l the keys and values that its table holds for layer 2 l mod L."""
        if not is_encoder_decoder(model):
            return table
        layers, places = _peft_s_places(table, model)
        theirs = torch.zeros_like(layers)
        theirs[:, places] = layers
        if not torch.equal(theirs[:, places], layers):
            raise CheckpointError(
                f"peft cannot hold this prefix: in an encoder-decoder with an even number of layers, {len(places)} "
                "here, it gives the same keys and values to two layers, and these differ. Keep it in a file of your "
                "own: torch.save(trainable_parameters(model), ...)"
            )
        return theirs.flatten(1)

    def table_from_peft(self, table: torch.Tensor, model: nn.Module, config: Any) -> torch.Tensor:
        """The same the other way round."""
        if not is_encoder_decoder(model) or table.shape[1] % (2 * _sizes(model)["num_layers"]):
            return table
        layers, places = _peft_s_places(table, model)
        return layers[:, places].flatten(1).contiguous()

    def without_extra(self, config: Any) -> MethodConfig:
        """The table alone computes the same, and can be trained on as it is."""
        plain: MethodConfig = replace(config, reparameterize=False, mid_dim=None)
        return plain

    def new_encoder(self, config: Any, model: nn.Module, columns: int) -> nn.Module | None:
        """The network, if there is one; its size is the model's."""
        if not config.reparameterize:
            return None
        sizes = _sizes(model)
        return PrefixEncoder(config, 2 * sizes["num_layers"] * sizes["token_dim"], sizes["token_dim"])


def _sizes(model: nn.Module) -> dict[str, int]:
    """The model's shape as peft names it: with grouped queries, token_dim is the width of the keys."""
    layers, heads, head_size = prefix_shape(find_stack(model, "decoder")[1].config)
    return {
        "num_layers": layers,
        "num_attention_heads": heads,
        "token_dim": heads * head_size,
        "num_transformer_submodules": 2 if is_encoder_decoder(model) else 1,
    }


def _peft_s_places(table: torch.Tensor, model: nn.Module) -> tuple[torch.Tensor, list[int]]:
    """The table as (k, layers, 2 · width), and from which of its layers peft takes the keys and values of each."""
    count = _sizes(model)["num_layers"]
    return table.view(len(table), count, -1), [2 * layer % count for layer in range(count)]
