"""From any decoder to a feature map z -> R^D, whose Euclidean metric is pulled back."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pullback import _checks
from pullback._modules import HALF, evaluation_mode, fits_decoder, holds_half, widened
from pullback.autodiff import checked_derivative, direction
from pullback.types import Points, Scalars

_ROUNDING = 0.01  # that a decoder may show in its derivatives when it computes in reduced precision

Output = int | str | Callable[[Any], Tensor] | tuple["Output", ...] | None


class MapInParts(nn.Module, ABC):
    """A map of points (n, d) to features in parts (n, D_1), (n, D_2), ...: to join them costs as much as a decoder."""

    @abstractmethod
    def parts(self, z: Tensor) -> tuple[Tensor, ...]:
        """The parts (n, D_k) at points (n, d)."""

    def forward(self, z: Tensor) -> Tensor:
        parts = self.parts(z)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Gaussian(MapInParts):
    r"""The decoder N(mu(z), diag sigma(z)^2) as a feature map: z -> (mu(z), sigma(z)).

    Pulling the Euclidean metric back by it gives the expected metric of a Gaussian decoder,

    .. math:: E[J^\top J] = J_\mu^\top J_\mu + J_\sigma^\top J_\sigma .

    Args:
        mean: Maps points (n, d) to means (n, ...).
        std: Maps points (n, d) to standard deviations (n, ...), of the shape of the means, or (n, 1) for one that all
            share; it then counts once for each output.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), theorem 1. :cite:`oddity`

    Example:
        >>> constant = Gaussian(nn.Linear(2, 3), lambda z: torch.ones(len(z), 3))
        >>> constant(torch.zeros(5, 2)).shape
        torch.Size([5, 6])
    """

    def __init__(self, mean: Callable[[Tensor], Tensor], std: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mean = mean
        self.std = std

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """mu and sigma (n, D), scaled so that their squared differences add up to that of the whole."""
        mean, std = _flat(self.mean(z)), _flat(self.std(z))
        if std.shape == mean.shape:
            return mean, std
        if std.shape[1] == 1:
            return mean, std * mean.shape[1] ** 0.5
        raise ValueError(
            f"`std` returns {std.shape[1]} values a point but `mean` returns {mean.shape[1]}: "
            "give one for each output, or a single one."
        )


class Stacked(MapInParts):
    r"""Several maps of the same points, side by side: :math:`z \mapsto (\sqrt{w_1} f_1(z), \sqrt{w_2} f_2(z), \ldots)`.

    Its metric is the weighted sum of theirs, :math:`\sum_k w_k J_k^\top J_k`.

    Args:
        maps: Decoders, each as :class:`~pullback.Pullback` takes them.
        weights: Positive numbers, one each. Default: 1.
    """

    def __init__(self, maps: Sequence[Callable[[Tensor], Any]], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.maps = nn.ModuleList(f if isinstance(f, FeatureMap) else FeatureMap(f) for f in maps)
        self.weights = [1.0] * len(maps) if weights is None else [float(w) for w in weights]
        for weight in self.weights:
            _checks.positive_and_finite(weight, "weights")

    def parts(self, z: Tensor) -> tuple[Tensor, ...]:
        pairs = zip(self.maps, self.weights, strict=True)
        return tuple(x if w == 1 else w**0.5 * x for f, w in pairs for x in f.parts(z))  # pyright: ignore[reportCallIssue]


class Ensemble(MapInParts):
    r"""Decoders trained apart, as one feature map: where they disagree, the metric grows.

    With the mean :math:`\bar J` of the members' Jacobians its metric is

    .. math:: G = \bar J^\top \bar J + \frac wS \sum_s (J_s - \bar J)^\top (J_s - \bar J),

    for w = 1 the mean of their metrics, :math:`E[J^\top J] = \frac1S \sum_s J_s^\top J_s`: the expected metric of a
    decoder drawn at random. A larger weight keeps geodesics where the members agree; w = 0 leaves the mean decoder.

    In that energy a curve is decoded by one member from end to end. A member drawn anew at each node adds a potential,
    :math:`\int |\bar f'|^2 + 2 \lambda \operatorname{tr} V`, with the variance V between members (the cited paper). Its
    minimizers are geodesics, too: of ``Conformal(Pullback(mean), lambda z: c + 2 * lam * ensemble.variance(z))``, where
    ``mean = Ensemble(members, weight=0)`` and c is what stays constant along them,
    :math:`|\bar f'|^2 - 2 \lambda \operatorname{tr} V`.

    Args:
        members: S decoders with outputs of one shape.
        weight: w, of the members' disagreement; not negative.
        output: Which part of each member's output is the data point, as for :class:`~pullback.Pullback`.

    Raises:
        ValueError: No members, a negative weight; with the first points, members whose outputs differ in shape.

    Cost:
        An evaluation is one of each member.

    Reference:
        Syrota, Moreno-Munoz, Hauberg (2024), Decoder ensembling for learned latent geometries. :cite:`ensembling`

    Example:
        >>> apart = Ensemble([lambda z: z, lambda z: 3 * z])
        >>> Ensemble([lambda z: z, lambda z: 3 * z], weight=0)(torch.ones(1, 2))
        tensor([[2., 2.]])
        >>> apart.variance(torch.ones(1, 2))
        tensor([2.])
    """

    def __init__(
        self, members: Sequence[Callable[[Tensor], Any]], *, weight: float = 1.0, output: Output = None
    ) -> None:
        super().__init__()
        if not len(members):
            raise ValueError("`members` is empty: give one decoder or more.")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"`weight` is {weight}: want a finite number, 0 or more.")
        self.members = nn.ModuleList(FeatureMap(f, output) for f in members)
        self.weight = float(weight)

    def parts(self, z: Tensor) -> tuple[Tensor, ...]:
        found = self._decoded(z)
        if self.weight == 1:
            return tuple(x / len(found) ** 0.5 for parts in found for x in parts)
        means = [torch.stack(same).mean(0) for same in zip(*found, strict=True)]
        if self.weight == 0:
            return tuple(means)
        share = (self.weight / len(found)) ** 0.5
        return (*means, *(share * (x - mean) for parts in found for x, mean in zip(parts, means, strict=True)))

    def variance(self, z: Points) -> Scalars:
        r"""The variance between members, summed over outputs: :math:`\operatorname{tr} V`, (..., d) -> (...).

        Of S members as they are, not an estimate of a population's: divided by S. In squared data units.
        """
        found = self._decoded(z.reshape(-1, z.shape[-1]))
        apart = [torch.stack(same).var(0, correction=0).sum(-1) for same in zip(*found, strict=True)]
        return torch.stack(apart).sum(0).reshape(z.shape[:-1])

    def _decoded(self, z: Tensor) -> list[tuple[Tensor, ...]]:
        found = [member.parts(z) for member in self.members if isinstance(member, FeatureMap)]
        shapes = [[tuple(x.shape[1:]) for x in parts] for parts in found]
        different = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
        if different is not None:
            raise ValueError(
                f"member {different} returns {shapes[different]} values a point but member 0 returns {shapes[0]}: "
                "an ensemble's members have outputs of one shape."
            )
        return found


class FeatureMap(MapInParts):
    """A decoder as a map of points (n, d) to features (n, D): one output chosen, flattened, looked at once.

    The first point of a dtype, device and mode is also used to check that the decoder digests points, treats each on
    its own and changes as its derivative says, and to measure the memory that a point takes. That costs 15 evaluations.
    These checks see one place: a decoder that takes another way elsewhere (``if (z > 3).any()``) may pass them.

    Modules with weights in half precision, also behind partial functions, methods and lambdas, are evaluated with these
    weights in the dtype of the points: cast anew each time, and never changed. What casts to half precision itself is
    refused.

    Args:
        decoder: Any module or callable, batch first; its output may have any shape.
        output: Which part of a tuple (index), mapping (key) or object (attribute) is the data point; or a function of
            the output; or a tuple of these, whose parts are stacked. None: the output is one tensor.
        features: Maps the chosen output, in its own shape, to what distances are measured between; of several parts it
            gets each as an argument.
    """

    def __init__(
        self,
        decoder: Callable[[Tensor], Any],
        output: Output = None,
        features: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__()
        if not callable(decoder):
            raise TypeError(f"`decoder` is a {type(decoder).__name__}: give a module or a function of points (n, d).")
        if features is not None and not callable(features):
            raise TypeError(f"`features` is a {type(features).__name__}: give a module or a function of the output.")
        self.decoder = decoder
        self.output = output
        self.features = features
        self._training()
        self._half = holds_half(decoder, features)
        self.dim: int | None = None  # d, known after the first points
        self.n_features = 0  # D, likewise
        self._footprints: dict[tuple[torch.dtype, torch.device, bool], int] = {}

    def parts(self, z: Tensor) -> tuple[Tensor, ...]:
        """The features in parts (n, D_k) at points (n, d)."""
        if not len(z):  # many decoders cannot take an empty batch
            return tuple(x[:0] for x in self.parts(torch.cat((z, z.new_zeros(1, z.shape[1])))))
        chosen = self._widely(self._chosen, z.clone())  # decoders may work in place
        return tuple(x.to(z) for part in chosen for x in _real(part))

    def _chosen(self, points: Tensor) -> list[Tensor]:
        """The parts (n, ...), each in its own shape and dtype."""
        if isinstance(self.decoder, MapInParts) and self.output is None:
            parts = self.decoder.parts(points)
            chosen = _select(parts, tuple(range(len(parts))), len(points))
        else:
            chosen = _select(self.decoder(points), self.output, len(points))
        return chosen if self.features is None else _select(self.features(*chosen), None, len(points))

    def _widely(self, call: Callable[[Tensor], Any], z: Tensor) -> Any:
        """call(z) with weights in half precision in the dtype of z."""
        return widened(call, z, self.decoder, self.features) if self._half else call(z)

    def _training(self) -> bool:
        """Whether a harmless part of the decoder is in training mode; an error where one is not harmless."""
        return evaluation_mode(self.decoder, self.features)

    def footprint(self, z: Tensor) -> int:
        """Bytes that one point takes while it is evaluated and differentiated once; checks the decoder on the way."""
        if self.dim is not None and z.shape[-1] != self.dim:
            raise _checks.wrong_dimension(z, self.dim)
        kind = (z.dtype, z.device, self._training())
        if kind not in self._footprints:
            flat = z.detach().reshape(-1, z.shape[-1])
            self._footprints[kind] = self._probe(flat if len(flat) else flat.new_zeros(1, z.shape[-1]))
        return self._footprints[kind]

    def _decoded(self, z: Tensor) -> Any:
        """What the decoder returns for a point (1, d) that asks for gradients, or the error that says what is wrong."""
        try:
            with torch.enable_grad():
                return self._widely(self.decoder, z.clone())
        except (RuntimeError, ValueError, LookupError, TypeError, AssertionError) as error:
            fits_decoder(z, self.decoder, str(error))
            raise _checks.rejected_points(z, error) from error

    def _probe(self, points: Tensor) -> int:
        z = points[:1]
        self._decoded(z.clone().requires_grad_())
        alone, bytes_one, dtype = _measure(self, z)
        if dtype in HALF:
            raise _checks.coarse_arithmetic(dtype)
        eps = _eps(dtype)
        step = eps**0.4 * (1 + float(z.abs().max())) * direction(z) * z.new_tensor([[-1], [0], [1]])
        near, among = z + step, _company(points)
        try:
            (close, bytes_three, _), (other, _, _) = _measure(self, near), _measure(self, among)
        except (RuntimeError, LookupError, TypeError, AssertionError) as error:
            raise _checks.rejected_points(near, error) from error
        if not alone.requires_grad:
            raise _checks.no_gradient()
        # the same batch size, so that the same kernels round in the same way; another may round in another
        change, more = (_relative(x[:1], close[1:2]) for x in (other[1:2], alone))
        if change > torch.finfo(z.dtype).eps ** 0.75 or more > _ROUNDING:
            raise _checks.mixed_batch(max(change, more))
        pushed, wrong = checked_derivative(self.parts, z)
        if wrong > _ROUNDING:
            raise _checks.contradicting_derivatives(wrong)
        self._check_values(close, z, step, torch.cat(pushed, 1), eps)
        self.dim, self.n_features = z.shape[1], alone.shape[1]
        return max((bytes_three - bytes_one) // 2, alone.numel() * alone.element_size())

    def _check_values(self, x: Tensor, z: Tensor, step: Tensor, pushed: Tensor, eps: float) -> None:
        """Raise unless values x (3, D) at z + step (3, d), or at shorter steps, change by the derivative `pushed`."""
        length = float(step[2].norm() / direction(z).norm())
        found = [_unfaithful(x, length * pushed, eps)]
        for shorter in (1 / 8, 1 / 64):  # the decoder may be rough
            if found[-1] <= _ROUNDING:
                return
            with torch.no_grad():
                found.append(_unfaithful(self(z + shorter * step), shorter * length * pushed, eps))
        if found[-1] > _ROUNDING:
            raise _checks.unfaithful_derivatives(found[-1])


def _measure(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, int, torch.dtype]:
    """The features of z, the bytes kept for their derivative, features counted twice, and the coarsest dtype met."""
    total, coarsest = 0, z.dtype

    def count(saved: Tensor) -> Tensor:
        nonlocal total, coarsest
        total += saved.numel() * saved.element_size()
        if _eps(saved.dtype) > _eps(coarsest):
            coarsest = saved.dtype
        return saved

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
        x = f(z.clone().requires_grad_())
    return x, total + 2 * x.numel() * x.element_size(), coarsest


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0


def _company(points: Tensor) -> Tensor:
    """The first of n points (n, d) between two of the others (3, d), or between neighbors that lie uneven."""
    z = points[:1]
    step = 0.01 * (1 + z.abs())
    aside = torch.cat((z - 3 * step, z + 2 * step))
    others = points[[len(points) // 2, -1]]
    usable = (torch.isfinite(others) & (others != z)).any(1, keepdim=True) & torch.isfinite(others).all(1, keepdim=True)
    first, last = torch.where(usable, others, aside).split(1)
    return torch.cat((first, z, last))


def _relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).detach().norm() / y.detach().norm().clamp_min(1e-30))


def _unfaithful(x: Tensor, pushed: Tensor, eps: float) -> float:
    """How far values x (3, D) at equal steps are from changing by `pushed` (1, D) a step, relatively.

    What a crease between them, curvature or rounding explain is not counted.
    """
    x = x.detach()
    change, bend = (x[2] - x[0]) / 2, x[2] - 2 * x[1] + x[0]
    rounding = eps**0.75 * x[1].norm()
    unexplained = (change - pushed[0]).norm() - 2 * bend.norm() - rounding
    return float(unexplained / torch.maximum(change.norm(), pushed.norm()).clamp_min(1e-30))


def _select(result: Any, output: Output, n: int) -> list[Tensor]:
    """The chosen parts of what a decoder returned for n points, each (n, ...)."""
    if isinstance(output, tuple):
        return [x for part in output for x in _select(result, part, n)]
    if output is None:
        part = result
    elif callable(output):
        part = output(result)
    else:
        part = _part(result, output)
    if not isinstance(part, Tensor) or part.is_nested:
        raise _wrong_output(part)
    if part.layout is not torch.strided:
        part = part.to_dense()
    if part.ndim == 0 or part.shape[0] != n:
        raise _checks.not_a_batch(tuple(part.shape), n)
    return [part]


def _real(x: Tensor) -> list[Tensor]:
    """(n, ...) to (n, D), of complex numbers both parts."""
    return [_flat(x.real), _flat(x.imag)] if x.is_complex() else [_flat(x)]


def _flat(x: Tensor) -> Tensor:
    """(n, ...) to (n, D)."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def _part(result: Any, output: int | str) -> Any:
    if isinstance(result, Mapping | tuple | list):
        try:
            return result[output]  # pyright: ignore[reportArgumentType, reportCallIssue]
        except (KeyError, IndexError, TypeError):
            pass
    if isinstance(output, str) and hasattr(result, output):
        return getattr(result, output)
    raise _checks.missing_output(output, type(result).__name__, _choices(result))


def _wrong_output(part: Any) -> ValueError:
    """The error for an output that is no tensor (n, ...)."""
    if isinstance(part, Tensor):
        return _checks.not_a_point("nested tensor")
    if isinstance(part, torch.distributions.Distribution):
        return _checks.distribution(type(part).__name__)
    choices = _choices(part)
    return _checks.choose_output(type(part).__name__, choices) if choices else _checks.not_a_point(type(part).__name__)


def _choices(result: Any) -> list[Any]:
    if isinstance(result, Mapping):
        return list(result)
    if dataclasses.is_dataclass(result):
        return [field.name for field in dataclasses.fields(result)]
    if isinstance(result, tuple | list):
        return list(range(len(result)))
    return [name for name, held in getattr(result, "__dict__", {}).items() if isinstance(held, Tensor)]
