"""For trainers of Transformers and TRL: `callbacks=[HoldMasks("runs/pruned")]` keeps pruned weights at zero.

The trainers of transformers own the loop. So a callback does what the pruner does in ours: it masks gradients before
they are clipped, and weights after each step.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from lib.base import files
from lib.base.errors import UsageError, UserError
from lib.prune import adapters, masks_file, saved_masks
from lib.record import checkpoint, checkpoint_file, run

_LAYERS = (nn.Linear, Conv1D)  # whose weights pruning covers


class _Given(NamedTuple):
    """A mask: 1 where the weight is kept."""

    mask: Tensor
    outputs_first: bool  # whether its rows are outputs; a Conv1D of transformers has them as columns


class _Held(NamedTuple):
    """A parameter of the model, and which of its weights stay zero."""

    name: str
    parameter: nn.Parameter
    pruned: Tensor  # bool, of the parameter's shape
    adapted: nn.Module | None  # the layer of peft that adapts it


class HoldMasks(TrainerCallback):
    """Keeps the pruned weights of a model at exactly zero while a trainer of transformers or TRL trains it.

    Hooks mask each gradient when it is computed: before it is accumulated, reduced over processes and clipped. So
    Adam's moments of pruned weights stay zero, and what is clipped is the norm of the weights that move. After each
    step the weights are masked as well, which costs little and holds with any optimizer. Before the first step the
    moments that a resumed optimizer brings are masked too: they may be older than the mask.

    Gradients may be accumulated, and processes may train together by DistributedDataParallel. Sharded parameters (FSDP,
    DeepSpeed) and quantised ones are refused. A model with LoRA is trained as it is, because its pruned weights are
    frozen. Its adapters are dense, and so is the model, until `merge` merges them under the mask. Evaluate it in
    `merged`, which gives the loss of that sparse model.

    Logs get `sparsity`, counted from the weights.
    """

    def __init__(self, masks: str | os.PathLike | Mapping[str, Tensor] | nn.Module):
        """Read the masks; raises UserError if there are none.

        `masks` is one of these:

        a path     a run that was pruned (folder, RUN@best, RUN@STEP or checkpoint); or a file masks.safetensors or a
                   folder with it, as `make export-model` writes it; or another folder of safetensors, for its zeros
        a model    for its zeros
        a mapping  parameter name -> mask of the parameter's shape, 0 where a weight is pruned

        Zeros count in linear layers without the output layer.
        """
        if isinstance(masks, nn.Module):
            self.given = {name: _Given(w.detach() != 0, False) for name, w in linear_weights(masks)}
            self.source = "this model"
        elif isinstance(masks, Mapping):
            self.given = {name: _Given(mask != 0, False) for name, mask in masks.items()}
            self.source = "the given mapping"
        else:
            self.given, self.source = _read(os.fspath(masks)), os.fspath(masks)
        if all(bool(one.mask.all()) for one in self.given.values()):
            raise UsageError(f"HoldMasks: {self.source}: prunes no weight; name a pruned run or model")
        self.held: list[_Held] = []
        self.plain: dict[nn.Module, nn.Module] = {}  # adapted layer -> the merged one that now computes for it
        self.hooks: list[Any] = []

    def bind(self, model: nn.Module) -> "HoldMasks":
        """Find the parameters of `model` that the masks are of; raises UserError if one is missing or does not fit.

        A trainer does this when it begins to train.
        """
        found = {_plain(name): (name, parameter) for name, parameter in model.named_parameters()}
        modules = {_plain(f"{name}.weight"): module for name, module in model.named_modules()}
        layers = {name: module for name, module in model.named_modules() if adapters.adapts(module)}
        self.held = []
        for name, given in self.given.items():
            matches = [name] if name in found else [one for one in found if one.endswith(f".{name}")]
            if not matches:
                raise UsageError(f"HoldMasks: the model has no parameter {name!r}, and {self.source} has its mask")
            if len(matches) > 1:
                raise UsageError(
                    f"HoldMasks: {name!r} of {self.source} fits several parameters of the model "
                    f"({', '.join(matches[:3])}); give the masks the whole names"
                )
            match = matches[0]
            whole, parameter = found[match]
            _check(whole, parameter)
            mask = given.mask
            if given.outputs_first and isinstance(modules.get(match), Conv1D):
                mask = mask.t()
            if mask.shape != parameter.shape:
                raise UsageError(
                    f"HoldMasks: the mask of {name} is {list(mask.shape)}, but {whole} is {list(parameter.shape)}; "
                    "name masks of a model of this shape"
                )
            adapted = layers.get(whole.removesuffix(f"{adapters.BASE}.weight"))
            self.held.append(_Held(whole, parameter, (mask == 0).to(parameter.device), adapted))
        return self

    @torch.no_grad()
    def apply(self, model: nn.Module | None = None) -> int:
        """Set pruned weights to zero, those of `model` or of the one that is bound; returns how many were not zero."""
        if model is not None:
            self.bind(model)
        count = self.broken()
        for one in self.held:
            one.parameter.masked_fill_(one.pruned, 0)
        return count

    def broken(self) -> int:
        """How many pruned weights of the model are not zero; beside adapters, how many of the frozen ones."""
        return sum(int(one.parameter.detach()[one.pruned].count_nonzero()) for one in self._bound())

    def sparsity(self) -> float:
        """The share of exact zeros among the weights that have masks, counted from the weights.

        The weights of an adapted layer are its sum with the adapters.
        """
        total = sum(one.parameter.numel() for one in self._bound())
        return 1 - sum(int(self._weight(one).count_nonzero()) for one in self.held) / total

    def _weight(self, one: _Held) -> Tensor:
        """What the model computes with."""
        if one.adapted is None:
            return one.parameter.detach()
        return (self.plain[one.adapted] if one.adapted in self.plain else adapters.merged(one.adapted)).weight.detach()

    def _bound(self) -> list[_Held]:
        if not self.held:
            raise UsageError("HoldMasks: has no model yet; call bind(model), or apply(model)")
        return self.held

    def merge(self, model: nn.Module) -> tuple[nn.Module, int]:
        """Merge the LoRA adapters of a model of peft, and mask the result.

        Returns the plain model, and how many pruned weights the adapters had made non-zero. What the adapters added to
        these is lost, so measure the merged model: its loss is higher than that of the adapted one.
        """
        merged = model.merge_and_unload()
        return merged, self.apply(merged)

    @contextlib.contextmanager
    def merged(self, model: nn.Module) -> Iterator[None]:
        """A context in which a model of peft computes as the one that `merge` would return, and `sparsity` is its own.

        No weight of `model` changes, so training goes on as if nothing had been measured. It takes memory for a copy of
        the adapted layers.
        """
        self.bind(model)
        plain = {module: adapters.merged(module) for module in model.modules() if adapters.adapts(module)}
        with torch.no_grad():
            for one in self.held:
                if one.adapted is not None:
                    plain[one.adapted].weight.masked_fill_(one.pruned, 0)
        self.plain = plain
        try:
            with adapters.replaced(plain):
                yield
        finally:
            self.plain = {}

    # ---- what the trainer calls --------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mask weights and the optimizer's state, and put hooks on the gradients."""
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise UsageError("HoldMasks: FSDP and DeepSpeed shard parameters, whose parts have no mask; train with DDP")
        self.bind(kwargs["model"])
        self.apply()
        self._forget(kwargs.get("optimizer"))
        self._unhook()
        for one in self.held:
            if one.parameter.requires_grad:
                pruned = one.pruned
                self.hooks.append(one.parameter.register_hook(lambda grad, pruned=pruned: grad.masked_fill(pruned, 0)))

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mask the weights after the step."""
        for one in self.held:
            if one.parameter.requires_grad:
                one.parameter.masked_fill_(one.pruned, 0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Add `sparsity` for the callbacks that come after this one."""
        if logs is not None and self.held:
            logs.setdefault("sparsity", self.sparsity())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the hooks. The trainer may have loaded its best checkpoint, so mask it too."""
        self.apply()
        self._unhook()

    def _unhook(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []

    @torch.no_grad()
    def _forget(self, optimizer: Any) -> None:
        """Zero what the optimizer remembers of pruned weights."""
        for one in self.held:
            for value in (optimizer.state.get(one.parameter, {}) if optimizer is not None else {}).values():
                if isinstance(value, Tensor) and value.shape == one.pruned.shape:
                    value.masked_fill_(one.pruned, 0)


def _plain(name: str) -> str:
    return name.replace(f"{adapters.BASE}.", ".")


def linear_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights of the linear layers of a model by name, without its output layer; adapters are merged."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    parts = {part for one in model.modules() if adapters.adapts(one) for part in list(one.modules())[1:]}
    for name, module in model.named_modules():
        if module in parts or module is head:
            continue
        layer = adapters.merged(module) if adapters.adapts(module) else module
        if isinstance(layer, _LAYERS):
            yield f"{name}.weight", layer.weight


def _check(name: str, parameter: nn.Parameter) -> None:
    """Raise UsageError for a parameter whose weights cannot be masked one by one."""
    if not parameter.is_floating_point() or not parameter.numel() or type(parameter.data) is not Tensor:
        raise UsageError(
            f"HoldMasks: {name} is {type(parameter.data).__name__} of {parameter.dtype}, sharded or quantised, so its "
            "weights cannot be masked; load the model whole, in float32, bfloat16 or float16"
        )


def _read(given: str) -> dict[str, _Given]:
    """The masks at a path, or of a run."""
    path = files.named(given)
    if (path / masks_file.FILE).is_file():
        path /= masks_file.FILE
    if path.name == masks_file.FILE:
        return {name: _Given(mask != 0, True) for name, mask in masks_file.read_file(path)[0].items()}
    if path.is_dir() and not (path / "run.json").exists() and (weights := sorted(path.glob("*.safetensors"))):
        return {name: one for file in weights for name, one in _zeros(file)}
    named = run.named(given)
    if not (named.folder / "run.json").is_file():
        raise UsageError(
            f"HoldMasks: {given}: is no run, no {masks_file.FILE} and no folder of safetensors; check the name"
        )
    expected = {"run_id": run.Identity.load(named.folder).run_id}
    found = checkpoint_file.chosen(named.folder, named.checkpoint or "newest")
    try:
        masks = saved_masks.unpack(checkpoint.load(found, expected=expected).get("pruner") or {})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{found}: the masks in this checkpoint cannot be read: {error}") from None
    if not masks:
        raise UsageError(f"{found}: has no masks, because nothing was pruned there; name a pruned run")
    return {name: _Given(mask != 0, True) for name, mask in masks.items()}


def _zeros(path: Path) -> Iterator[tuple[str, _Given]]:
    """Where matrices of a file that transformers saved are not zero, but for embeddings and the output layer."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                tensor = file.get_tensor(name)
                if tensor.dim() == 2 and not any(word in name for word in ("emb", "wte", "wpe", "lm_head")):
                    yield name, _Given(tensor != 0, False)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}; save the model again") from None
