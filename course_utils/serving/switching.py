"""Several trained adapters on one base model, switched at run time: one model in memory, many tasks.

A method puts small modules beside the base's own layers, and trains a few of its parameters (the head; with BitFit the
biases). To switch is to take those out and to put others in: no weight of the base is copied, moved or changed. It
takes no time to speak of, and each adapter costs only its own numbers::

    adapters = Adapters(model)
    adapters.add("tweets", "checkpoints/tweets")      # LoRA, say
    adapters.add("reviews", "checkpoints/reviews")    # another rank, another method: they stand side by side
    adapters.use("tweets")                            # model(...) is now tuned for tweets, with their head
    adapters.use(None)                                # and now it is the base again, bit for bit

It is the same model all the time, and the adapter in use can be trained, counted and saved as ever. Only `merge` and
`eject` are not for it: they would change the base that the others need. Load the checkpoint into a model of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from course_utils.checkpoints import load
from course_utils.checkpoints.folder import without_memory
from course_utils.methods.base import AdaptedLayer, MethodConfig, inject
from course_utils.methods.counting import trainable_parameters
from course_utils.methods.errors import MethodError
from course_utils.methods.targets import find_head

#: Parameters and wrappers by their dotted name in the bare base; a wrapper never before a parameter inside it.
Parts = Mapping[str, nn.Parameter | nn.Module]


class Adapters:
    """The adapters of one model, by name; one of them, or none, is in use.

    Args:
        model: is changed in place; its own weights are frozen. Move it to its device before. If a method is in it
            already, call `keep` next.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.active: str | None = None
        self._adapters: dict[str | None, tuple[MethodConfig | None, Parts]] = {None: (None, {})}
        self._base: dict[str, nn.Parameter | nn.Module] = {}  # the base's own, wherever an adapter puts something else

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the adapters, in the order in which they came."""
        return tuple(name for name in self._adapters if name is not None)

    def add(self, name: str, source: str | Path | MethodConfig) -> None:
        """Bring in a checkpoint's folder, or a fresh method to be trained, and switch to it.

        Raises:
            CheckpointError: the checkpoint does not fit.
            MethodError: the method does not fit, the name is taken, or the model was changed from outside. In all
                cases nothing has changed.
        """
        self._check_new(name)
        before = self.active
        self.use(None)
        modules, own = dict(self.model.named_modules()), dict[str, nn.Parameter]()
        try:
            # A rehearsal without memory: does it fit, and which of the base's own parameters would it train?
            rehearsal = without_memory(self.model)
            parameters = dict(rehearsal.named_parameters(remove_duplicate=False))
            _insert(rehearsal, source)
            own = {key: self.model.get_parameter(key) for key, p in parameters.items() if p.requires_grad}
            copies = {p: nn.Parameter(p.detach().clone()) for p in own.values()}  # tied parameters stay tied
            _place(self.model, {key: copies[p] for key, p in own.items()})
            _insert(self.model, source)
        except Exception:
            _place(self.model, own)
            self.use(before)
            raise
        wrappers = _wrappers(self.model)
        self._register(name, {**{key: copies[p] for key, p in own.items()}, **wrappers})
        self._base |= own | {key: modules[key] for key in wrappers}
        for parameter in own.values():
            parameter.requires_grad_(False)

    def keep(self, name: str) -> None:
        """Make the method that was injected into the model, trained or not, the adapter with this name.

        The base keeps the head that was trained with it, as after `eject`: the head before that is gone.

        Raises:
            MethodError: no such method is there, the name is taken, or the method trained the model's own weights
                below the head, so that no base is left. Nothing has changed then.
        """
        self._check_new(name)
        config: MethodConfig | None = getattr(self.model, "tuning", None)
        if config is None or self.active is not None:
            raise MethodError("there is nothing to keep: inject a method into the base first, or use add")
        wrappers, head = _wrappers(self.model), find_head(self.model, config.head)
        own = {key: p for key, p in trainable_parameters(self.model).items() if not _inside(key, wrappers)}
        if not all(_inside(key, head) for key in own):
            raise MethodError(
                f"{config.name} trained the model's own weights in place, so no base is left. Save a checkpoint and "
                "add it to a fresh model"
            )
        self._register(name, {**own, **wrappers})
        self._base |= {key: nn.Parameter(p.detach().clone(), requires_grad=False) for key, p in own.items()}
        self._base |= {key: wrapper.removed() for key, wrapper in wrappers.items()}

    def use(self, name: str | None) -> None:
        """Switch to the adapter with this name, or with None to the bare base.

        Raises:
            MethodError: there is no such adapter, or the model was changed from outside. Nothing has changed then.
        """
        if name not in self._adapters:
            raise MethodError(f"there is no adapter {name!r}; there are {', '.join(self.names) or 'none yet'}")
        (config, old), (new_config, new) = self._adapters[self.active], self._adapters[name]
        if getattr(self.model, "tuning", None) is not config:
            raise MethodError(
                f"the model does not hold what was in use ({self.active}): a method was injected, merged or taken out "
                "from outside. Keep an injected one with keep(name)"
            )
        _place(self.model, {key: self._base[key] for key in reversed(list(old))})  # wrappers first, then what is inside
        _place(self.model, new)
        self.model.tuning = new_config  # type: ignore[assignment]
        self.model.train(self.model.training)  # the parts that come in too
        self.active = name

    def _check_new(self, name: str) -> None:
        if not isinstance(name, str) or not name or name in self._adapters:
            taken = ", ".join(self.names) or "none"
            raise MethodError(f"an adapter needs a new name, got {name!r}; taken are {taken}")

    def _register(self, name: str, parts: Parts) -> None:
        self._adapters[name] = (self.model.tuning, parts)  # type: ignore[assignment]
        self.active = name


def _insert(model: nn.Module, source: str | Path | MethodConfig) -> None:
    if isinstance(source, MethodConfig):
        inject(model, source)
    else:
        load(model, source)


def _place(model: nn.Module, parts: Parts) -> None:
    for key, part in parts.items():
        owner, _, name = key.rpartition(".")
        setattr(model.get_submodule(owner), name, part)


def _wrappers(model: nn.Module) -> dict[str, AdaptedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}


def _inside(name: str, modules: Iterable[str]) -> bool:
    return any(name.startswith(module + ".") for module in modules)
