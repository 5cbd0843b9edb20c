r"""Derivatives of a map f at many points at once: value, J v, J' w, J and f''(u, v).

A map takes points (n, d) to features (n, D), each point on its own. Everything here evaluates it on plain batches: no
``vmap`` over points, so eval-mode batch norm, convolutions and attention work as they are. Costs count forward
evaluations of one point; a tangent pushed through costs one more, a cotangent pulled back two more.

Two ways lead to J v. One pulls a cotangent w back and differentiates the result, which is linear in w:
d/dw (J'w)'v = J v. All tangents share one graph; it is the faster way from the first tangent on. It needs the second
derivative of every operator. Fused attention and compiled code have none: they are then computed by plain operations.
Other operators without (custom ones) are differentiated in forward mode, if they have that. A `DerivativeWarning` says
so once.

Results carry gradients when an argument requires them; then nothing is chunked.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

from pullback import _checks
from pullback._batching import differentiated, map_points
from pullback.types import Features, Jacobians, Points, Tangents

Map = Callable[[Tensor], Tensor]
Parts = tuple[Tensor, ...]  # features (n, D_1), (n, D_2), ... that need not be joined to be differentiated
PartsMap = Callable[[Tensor], Parts]
T = TypeVar("T")
_NO_LIMIT = 1 << 62


def value(f: Map, z: Points, *, chunk: int = _NO_LIMIT) -> Features:
    """f(z): (..., d) -> (..., D). Cost: 1 a point."""
    return map_points(lambda z: (f(z),), (z,), chunk)[0]


def jvp(f: Map, z: Points, vectors: tuple[Tangents, ...], *, chunk: int = _NO_LIMIT) -> tuple[Features, ...]:
    """J v for each of k vectors v (..., d): a tuple of (..., D). Cost: 3 + k a point.

    Example:
        >>> jvp(torch.sin, torch.zeros(2), (torch.tensor([1.0, 2.0]),))
        (tensor([1., 2.]),)
    """

    def pushed(z: Tensor, *vectors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x for (x,) in push(_whole(f), z, vectors)[1:])

    return map_points(pushed, (z, *vectors), chunk)


def vjp(f: Map, z: Points, w: Features, *, chunk: int = _NO_LIMIT) -> Tangents:
    """J' w for a cotangent w (..., D): (..., d). Cost: 3 a point.

    Example:
        >>> vjp(torch.sin, torch.zeros(2), torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """

    def pulled(z: Tensor, w: Tensor) -> tuple[Tensor]:
        graph = differentiated(z, w)
        with torch.enable_grad():
            z = _leaf(z, graph)
            return (_pull((f(z),), z, (w,), graph=graph),)

    return map_points(pulled, (z, w), chunk)[0]


def jacobian(f: Map, z: Points, *, chunk: int = _NO_LIMIT) -> Jacobians:
    """J: (..., D, d). Cost: d + 3 a point, or 2 D + 1 where that is less.

    Example:
        >>> jacobian(torch.sin, torch.zeros(1))
        tensor([[1.]])
    """

    def stacked(z: Tensor) -> tuple[Tensor]:
        with torch.no_grad():
            n_features = f(z[:1]).shape[1]
        return (torch.stack([x for (x,) in jacobian_columns(_whole(f), z, n_features)[1:]], -1),)

    return map_points(stacked, (z,), chunk)[0]


def second_derivative(f: Map, z: Points, u: Tangents, v: Tangents, *, chunk: int = _NO_LIMIT) -> Features:
    """f''(u, v), the second derivative in directions u and v: (..., D). Cost: 5 a point.

    Example:
        >>> second_derivative(torch.sin, torch.full((1,), torch.pi / 2), torch.ones(1), torch.ones(1))
        tensor([-1.])
    """

    # not forward over forward mode: torch gets that wrong for layer and group norm
    ways = {"": _bend, _PLAIN: _plainly(_bend)}
    return map_points(lambda z, u, v: (_first_that_works(ways, f, z, u, v),), (z, u, v), chunk)[0]


def push(f: PartsMap, z: Points, vectors: tuple[Tangents, ...]) -> list[Parts]:
    """f(z), then J v for each of k vectors v (n, d) at points (n, d), in one piece. Cost: 3 + k a point."""
    ways = {
        "": _push_by_reverse,
        _PLAIN: _plainly(_push_by_reverse),
        "Jacobians come from forward mode, more slowly": _push_forward,
    }
    return _first_that_works(ways, f, z, vectors)


def jacobian_columns(f: PartsMap, z: Points, n_features: int) -> list[Parts]:
    """f(z), then the columns J e_i of a map to D features at points (n, d). Cost: as for :func:`jacobian`."""
    n, d = z.shape
    if 2 * n_features + 1 < d + 3:
        return _by_rows(f, z)
    return push(f, z, tuple(e.expand(n, d) for e in torch.eye(d, dtype=z.dtype, device=z.device)))


def jet(
    f: PartsMap, z: Points, vectors: Sequence[Tangents], pairs: Sequence[tuple[Tangents, Tangents]]
) -> tuple[list[Parts], list[Parts]]:
    """f(z) and J v for each of k vectors v; f''(u, v) for each of m pairs (u, v): all (n, d) at points (n, d).

    In one piece, with one graph for all; pairs with the same first vector should follow each other. Cost: 3 + k + m a
    point, and the work of about three more for each first vector, inside the decoder.
    """
    ways = {"": _jet_by_reverse, _PLAIN: _plainly(_jet_by_reverse)}
    return _first_that_works(ways, f, z, vectors, pairs)


def contradiction(f: PartsMap, z: Points) -> float:
    """The relative difference of w'(J v) and (J'w)'v at random v, w: rounding unless an operator has wrong derivatives.

    Cost: 7 a point.
    """
    return checked_derivative(f, z)[1]


def direction(z: Points) -> Tangents:
    """Tangents (n, d) at points (n, d), drawn at random and always the same."""
    return _random_like(z, torch.Generator().manual_seed(_SEED))


def checked_derivative(f: PartsMap, z: Points) -> tuple[Parts, float]:
    """J v along :func:`direction`, and its :func:`contradiction`. Cost: 7 a point."""
    v = direction(z)
    with torch.no_grad():
        _, pushed = push(f, z, (v,))
    generator = torch.Generator().manual_seed(_SEED + 1)
    w = tuple(_random_like(x, generator) for x in pushed)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        pulled = _pull(f(z), z, w, graph=False)
    there = sum(float((x * y).sum()) for x, y in zip(w, pushed, strict=True))
    back = float((v * pulled).sum())
    rounding = sum(float(x.norm() * y.norm()) for x, y in zip(w, pushed, strict=True)) * torch.finfo(z.dtype).eps
    return pushed, abs(there - back) / max(abs(there), abs(back), 100 * rounding, 1e-300)


def _random_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device)


def _push_by_reverse(f: PartsMap, z: Tensor, vectors: tuple[Tensor, ...]) -> list[Parts]:
    """f(z) and J v as the derivative of w -> v'J'w, which is linear in w: one graph for all vectors, 3 + k."""
    graph = differentiated(z, *vectors)
    with torch.enable_grad():
        z = _leaf(z, graph)
        parts = f(z)
        w = [x.detach().requires_grad_() for x in parts]  # any value does
        pulled = _pull(parts, z, w, graph=True)
        results = [parts if graph else tuple(x.detach() for x in parts)]
        for i, v in enumerate(vectors):
            retain = graph or i < len(vectors) - 1
            results.append(_differentiate(pulled, w, v, retain_graph=retain, create_graph=graph))
        return results


def _bend(f: Map, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """f''(u, v) as the derivative of w -> v' d/dz (u'J'w), which is linear in w."""
    graph = differentiated(z, u, v)
    with torch.enable_grad():
        z = _leaf(z, graph)
        x = f(z)
        w = x.detach().requires_grad_()  # any value does
        pulled = _pull((x,), z, (w,), graph=True)
        _differentiate(pulled, [w], v, retain_graph=True)  # J v: fails where an operator hides w
        options: Any = {"allow_unused": True, "materialize_grads": True}  # f may be linear
        (turned,) = torch.autograd.grad(pulled, z, u, create_graph=True, **options)
        return torch.autograd.grad(turned, w, v, create_graph=graph, **options)[0]


def _jet_by_reverse(
    f: PartsMap, z: Tensor, vectors: Sequence[Tensor], pairs: Sequence[tuple[Tensor, Tensor]]
) -> tuple[list[Parts], list[Parts]]:
    """J v and f''(u, v) as derivatives of w -> v'J'w and w -> v' d/dz (u'J'w), which are linear in w."""
    graph = differentiated(z, *vectors, *(v for pair in pairs for v in pair))
    options: Any = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}  # f may be linear
    with torch.enable_grad():
        z = _leaf(z, graph)
        parts = f(z)
        w = [x.detach().requires_grad_() for x in parts]  # any value does
        pulled = _pull(parts, z, w, graph=True)
        first = [parts if graph else tuple(x.detach() for x in parts)]
        first += [_differentiate(pulled, w, v, retain_graph=True, create_graph=graph) for v in vectors]
        second: list[Parts] = []
        turning, turned = None, pulled
        for u, v in pairs:
            if u is not turning:
                turning, (turned,) = u, torch.autograd.grad(pulled, z, u, create_graph=True, **options)
            if turned.requires_grad:
                second.append(torch.autograd.grad(turned, w, v, create_graph=graph, **options))
            else:  # linear in pieces, and torch knows
                second.append(tuple(torch.zeros_like(x) for x in w))
        return first, second


def _push_forward(f: PartsMap, z: Tensor, vectors: tuple[Tensor, ...]) -> list[Parts]:
    """Forward mode on one copy of the points for each vector, all in one batch: 2 k."""
    _load_forward_mode()
    k, n = len(vectors), z.shape[0]
    both = torch.func.jvp(f, (z.repeat(k, 1),), (torch.cat(vectors),))
    return [tuple(x[:n] for x in both[0]), *zip(*(x.split(n) for x in both[1]), strict=True)]


def _pull(parts: Sequence[Tensor], z: Tensor, w: Sequence[Tensor], *, graph: bool) -> Tensor:
    """J'w from the features of points z."""
    moving = [(x, y) for x, y in zip(parts, w, strict=True) if x.requires_grad]
    if not moving:
        raise _checks.no_gradient()
    x, y = zip(*moving, strict=True)
    (pulled,) = torch.autograd.grad(x, z, y, create_graph=graph, allow_unused=True)
    if pulled is None:
        raise _checks.no_gradient()
    return pulled


def _differentiate(pulled: Tensor, w: list[Tensor], v: Tensor, **options: Any) -> Parts:
    """The derivative J v of v'J'w by w."""
    columns = torch.autograd.grad(pulled, w, v, allow_unused=True, **options) if pulled.requires_grad else [None]
    if all(column is None for column in columns):
        raise NotImplementedError("the derivative of an operator is not differentiable")
    # a part may be constant
    return tuple(torch.zeros_like(x) if column is None else column for x, column in zip(w, columns, strict=True))


def _by_rows(f: PartsMap, z: Tensor) -> list[Parts]:
    """f(z) and the columns of J from its D rows: one graph, D pulls."""
    graph = differentiated(z)
    with torch.enable_grad():
        z = _leaf(z, graph)

        def row(x: Tensor, j: int) -> Tensor:
            if not x.requires_grad:
                return torch.zeros_like(z)
            options: Any = {"retain_graph": True, "create_graph": graph, "materialize_grads": True}
            return torch.autograd.grad(x[:, j].sum(), z, **options)[0]

        parts = f(z)
        rows = [torch.stack([row(x, j) for j in range(x.shape[1])], 1) for x in parts]  # (n, D_k, d)
    return [parts, *zip(*(part.unbind(-1) for part in rows), strict=True)]


def _leaf(z: Tensor, graph: bool) -> Tensor:
    """The points to differentiate by: z itself where the result has to know where z comes from."""
    return z if graph and z.requires_grad else z.detach().requires_grad_()


def _whole(f: Map) -> PartsMap:
    return lambda z: (f(z),)


@functools.cache
def _load_forward_mode() -> None:
    """Let torch load what its first forward derivative needs, without telling the user that torch.jit is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        zero = torch.zeros((), device="cpu")
        torch.func.jvp(torch.neg, (zero,), (zero,))


def _plainly(way: Callable[..., T]) -> Callable[..., T]:
    """The same way with scaled dot-product attention made of plain operations, and compiled code as it was written."""

    def plain(*arguments: object) -> T:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with _plain_lock, sdpa_kernel(SDPBackend.MATH), _uncompiled():
            return way(*arguments)

    return plain


def _uncompiled() -> AbstractContextManager[object]:
    """A context in which what torch.compile made runs as it was written; torch 2.5 has none."""
    compiling = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")  # loading it takes a second
    return torch.compiler.set_stance("force_eager") if compiling else contextlib.nullcontext()


def _first_that_works(ways: dict[str, Callable[..., T]], *arguments: object) -> T:
    """Take the first way whose derivatives all operators have; say once, by its key, when it is not the first."""
    reasons: list[str] = []
    for consequence, way in ways.items():
        try:
            results = way(*arguments)
        except RuntimeError as error:
            if not reasons and not _lacks_derivative(error):
                raise
            reasons.append(str(error).splitlines()[0])
            continue
        if reasons and consequence not in _warned:
            _warned.add(consequence)
            text = f"an operator of the decoder lacks a derivative: {consequence}. torch says: {reasons[0]}"
            warnings.warn(text, _checks.DerivativeWarning, stacklevel=2)
        return results
    raise _checks.no_derivative(reasons)


def _lacks_derivative(error: RuntimeError) -> bool:
    signs = ("is not implemented", "once_differentiable", "double backward", "functorch", "use_reentrant")
    return isinstance(error, NotImplementedError) or any(sign in str(error) for sign in signs)


_PLAIN = "its attention is computed by plain operations, and compiled parts as they were written, more slowly"
_SEED = 7_919_083  # not one that codes are drawn with: along z itself, many decoders do not change
_plain_lock = threading.RLock()  # kernels and compiled code are chosen for the whole process
_warned: set[str] = set()
