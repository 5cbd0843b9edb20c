"""From any decoder to a feature map z -> R^D, whose Euclidean metric is pulled back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pullback import _checks
from pullback.autodiff import contradiction

_ROUNDING = 0.01  # that a decoder may show in its derivatives when it computes in reduced precision

Output = int | str | Callable[[Any], Tensor] | tuple["Output", ...] | None


class Gaussian(nn.Module):
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

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat(self.parts(z), 1)

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


class FeatureMap(nn.Module):
    """A decoder as a map of points (n, d) to features (n, D): one output chosen, flattened, looked at once.

    The first point of a dtype, device and mode is also used to check that the decoder digests points, treats each on
    its own and is differentiable, and to measure the memory that a point takes. That costs 15 evaluations.

    Args:
        decoder: Any module or callable, batch first; its output may have any shape.
        output: Which part of a tuple (index), mapping (key) or object (attribute) is the data point; or a function of
            the output; or a tuple of these, whose parts are stacked. None: the output is one tensor.
    """

    def __init__(self, decoder: Callable[[Tensor], Any], output: Output = None) -> None:
        super().__init__()
        if not callable(decoder):
            raise TypeError(f"`decoder` is a {type(decoder).__name__}: give a module or a function of points (n, d).")
        _checks.evaluation_mode(decoder)
        self.decoder = decoder
        self.output = output
        self.dim: int | None = None  # d, known after the first points
        self.n_features = 0  # D, likewise
        self._footprints: dict[tuple[torch.dtype, torch.device, bool], int] = {}

    def forward(self, z: Tensor) -> Tensor:
        parts = self.parts(z)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def parts(self, z: Tensor) -> tuple[Tensor, ...]:
        """The features in parts (n, D_1), (n, D_2), ...: joining them costs as much as a cheap decoder."""
        if not len(z):  # many decoders cannot take an empty batch
            return tuple(x[:0] for x in self.parts(torch.cat((z, z.new_zeros(1, z.shape[1])))))
        points = z.clone()  # decoders may work in place
        if isinstance(self.decoder, Gaussian) and self.output is None:
            chosen = _select(self.decoder.parts(points), (0, 1), len(z))
        else:
            chosen = _select(self.decoder(points), self.output, len(z))
        return tuple(x.to(z) for x in chosen)

    def footprint(self, z: Tensor) -> int:
        """Bytes that one point takes while it is evaluated and differentiated once; checks the decoder on the way."""
        if self.dim is not None and z.shape[-1] != self.dim:
            raise _checks.wrong_dimension(z, self.dim)
        kind = (z.dtype, z.device, _checks.evaluation_mode(self.decoder))
        if kind not in self._footprints:
            flat = z.detach().reshape(-1, z.shape[-1])
            self._footprints[kind] = self._probe(flat[:1] if len(flat) else flat.new_zeros(1, z.shape[-1]))
        return self._footprints[kind]

    def _probe(self, z: Tensor) -> int:
        try:
            with torch.enable_grad():
                self.decoder(z.clone().requires_grad_().clone())
        except (RuntimeError, ValueError, LookupError, TypeError, AssertionError) as error:
            _checks.fits_decoder(z, self.decoder)
            raise _checks.rejected_points(z, error) from error
        alone, bytes_one = _measure(self, z)
        step = 0.01 * (1 + z.abs())
        near, far = (torch.cat((z - size * step, z, z + size * step)) for size in (1, 2))
        (joined, bytes_three), (other, _) = _measure(self, near), _measure(self, far)
        if not alone.requires_grad:
            raise _checks.no_gradient()
        # the same batch size, so that the same kernels round in the same way
        change = float((joined[1] - other[1]).detach().norm() / other[1].detach().norm().clamp_min(1e-30))
        if change > torch.finfo(z.dtype).eps ** 0.75:
            raise _checks.mixed_batch(change)
        wrong = contradiction(self.parts, z)
        if wrong > _ROUNDING:
            raise _checks.contradicting_derivatives(wrong)
        self.dim, self.n_features = z.shape[1], alone.shape[1]
        return max((bytes_three - bytes_one) // 2, alone.numel() * alone.element_size())


def _measure(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, int]:
    """The features of z and the bytes kept for their derivative, the features counted twice."""
    total = 0

    def count(saved: Tensor) -> Tensor:
        nonlocal total
        total += saved.numel() * saved.element_size()
        return saved

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda saved: saved):
        x = f(z.clone().requires_grad_())
    return x, total + 2 * x.numel() * x.element_size()


def _select(result: Any, output: Output, n: int) -> list[Tensor]:
    """The chosen parts of what a decoder returned for n points, each (n, D)."""
    if isinstance(output, tuple):
        return [x for part in output for x in _select(result, part, n)]
    if output is None:
        part = result
    elif callable(output):
        part = output(result)
    else:
        part = _part(result, output)
    if not isinstance(part, Tensor):
        raise _checks.choose_output(type(part).__name__, _choices(part))
    if part.ndim == 0 or part.shape[0] != n:
        raise _checks.not_a_batch(tuple(part.shape), n)
    return [_flat(part.real), _flat(part.imag)] if part.is_complex() else [_flat(part)]


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


def _choices(result: Any) -> list[Any]:
    if isinstance(result, Mapping):
        return list(result)
    if dataclasses.is_dataclass(result):
        return [field.name for field in dataclasses.fields(result)]
    if isinstance(result, tuple | list):
        return list(range(len(result)))
    return []
