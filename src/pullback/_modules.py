"""The modules behind a decoder, however it is wrapped: found, judged, and evaluated in the dtype of the points."""

from __future__ import annotations

import dis
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm

T = TypeVar("T")
HALF = (torch.float16, torch.bfloat16)
_CALLS = (functools.partial, MethodType, FunctionType)
_DEPTH = 4  # wrappers around wrappers that are seen through
_MANY = 1000  # members of a list that are looked at: longer ones hold data
_replacing = threading.RLock()
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")


def modules_behind(*decoders: object) -> Iterator[tuple[str, nn.Module]]:
    """Every module that a decoder is, holds, or reaches as a method, partial function, lambda or closure, by name."""
    seen: set[nn.Module] = set()
    pending = [(decoder, _DEPTH) for decoder in decoders]
    while pending:
        thing, depth = pending.pop()
        if isinstance(thing, nn.Module):
            for name, module in thing.named_modules(seen):
                yield name, module
                if depth and not type(module).__module__.startswith("torch.nn."):  # these hold modules alone
                    pending += [(held, depth - 1) for held in vars(module).values() if type(held) in _CALLS]
        elif depth:
            pending += [(held, depth - 1) for held in _held(thing)]


def _held(thing: object) -> Iterable[object]:
    """What a wrapper calls or might call."""
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__]
    if isinstance(thing, tuple | list | dict):
        items = itertools.islice(thing.values() if isinstance(thing, dict) else thing, _MANY)
        return [held for held in items if isinstance(held, (nn.Module, *_CALLS))]
    if isinstance(thing, FunctionType):
        return [] if (thing.__module__ or "").startswith("torch.") else _named(thing)
    if isinstance(thing, type | ModuleType) or not hasattr(thing, "__dict__"):
        return []
    return [held for held in vars(thing).values() if isinstance(held, (nn.Module, *_CALLS))]  # an object


def _named(function: FunctionType) -> list[object]:
    """What a function takes from around it: defaults, variables of the functions it stands in, and globals."""
    held: list[object] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    names = _global_names(function.__code__)
    return [*held, *(function.__globals__[name] for name in names if name in function.__globals__)]


@functools.lru_cache(maxsize=1024)
def _global_names(code: CodeType) -> frozenset[str]:
    """The globals that a function loads; attributes have names in its code, too."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return frozenset(own.union(*(_global_names(c) for c in code.co_consts if isinstance(c, CodeType))))


def holds_half(*decoders: object) -> bool:
    """Whether modules behind decoders have parameters or buffers in half precision, which :func:`widened` widens."""
    return any(tensor.dtype in HALF for _, module in modules_behind(*decoders) for _, tensor in _own_tensors(module))


def widened(call: Callable[[Tensor], T], z: Tensor, *decoders: object) -> T:
    """call(z), while what modules behind decoders hold in half precision is replaced by copies in the dtype of z."""
    modules = [module for _, module in modules_behind(*decoders)]
    wide: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}  # of tensors that modules share
    with _replacing:
        for i, module in enumerate(modules):
            for name, tensor in _own_tensors(module):
                if tensor.dtype in HALF:
                    wide[f"held.{i}.{name}"] = copies.setdefault(id(tensor), tensor.to(z.dtype))
        # Every tensor has its name here. Torch's own search for tied ones leaves copies behind in modules that are
        # shared, and so would two threads.
        return torch.func.functional_call(_Caller(modules), wide, (call, z), tie_weights=False) if wide else call(z)


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    if isinstance(module, torch.jit.ScriptModule):  # cannot be called with others
        return []
    named = (*module._parameters.items(), *module._buffers.items())
    return [(name, tensor) for name, tensor in named if tensor is not None]


class _Caller(nn.Module):
    """Calls a function that uses the modules, whose tensors functional_call can then replace."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules)

    def forward(self, call: Callable[[Tensor], Any], z: Tensor) -> Any:
        return call(z)


def evaluation_mode(*decoders: object) -> bool:
    """Refuse a module in training mode whose output is random, depends on the batch, or changes from call to call.

    Quantized modules are refused in any mode. Returns whether anything that is not known to do so is in training mode.
    """
    training = False
    for name, module in modules_behind(*decoders):
        if type(module).__module__.startswith(_QUANTIZED):
            kind = type(module).__name__
            raise ValueError(
                f"the decoder holds a quantized {kind} ('{name}'): its output is a staircase, without a derivative. "
                "Give the decoder as it was before it was quantized."
            )
        if not getattr(module, "training", False):  # frozen programs have no mode
            continue
        training = True
        effect = _effect_of_training(module)
        if effect is not None:
            kind = getattr(module, "original_name", type(module).__name__)  # of a scripted module
            raise ValueError(
                f"the decoder is in training mode and holds {kind} ('{name}'): its output would {effect}. Call "
                "decoder.eval() first."
            )
    return training


def _effect_of_training(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "depend on the whole batch"
    if isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU):
        return "be random"
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase) and module.dropout > 0:
        return "be random"
    if getattr(module, "track_running_stats", False) or isinstance(module, _SpectralNorm):
        return "change its running statistics"
    return None


def fits_decoder(z: Tensor, decoder: object, said: str = "wrong type") -> None:
    """Raise when points and the decoder's weights differ in dtype or device, and that explains what it said."""
    tensors = (w for _, module in modules_behind(decoder) for w in (*module.parameters(False), *module.buffers(False)))
    weights = [w for w in tensors if w.is_floating_point()]
    if not weights:
        return
    elsewhere = (w for w in weights if w.device != z.device or w.dtype not in (z.dtype, *HALF))
    weight = next(elsewhere, weights[0])  # of an ensemble perhaps one member alone
    if weight.device != z.device:
        raise ValueError(
            f"the points are on {z.device} but the decoder is on {weight.device}: use z.to('{weight.device}') "
            f"or decoder.to('{z.device}')."
        )
    if weight.dtype in HALF and "type" in said:  # the weights were as wide as z, but something inside is not
        raise ValueError(
            f"the points have dtype {_dtype(z)} but the decoder has {_dtype(weight)} and holds on to it: use "
            f"decoder.to(torch.{_dtype(z)}), and leave out casts inside."
        )
    if weight.dtype not in (z.dtype, *HALF):
        raise ValueError(
            f"the points have dtype {_dtype(z)} but the decoder has {_dtype(weight)}: use z.to(torch.{_dtype(weight)}) "
            f"or decoder.to(torch.{_dtype(z)})."
        )


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
