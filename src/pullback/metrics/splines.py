"""Tensor-product cubic splines on regular grids: interpolation in a few dimensions that is twice differentiable."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_banded
from torch import Tensor, nn

# The four cubic B-splines that are not zero on a cell, by powers of t in [0, 1] along it.
_BASIS = [[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]
_BAND = 4  # diagonals to each side of the equations for the coefficients


class GridSpline(nn.Module):
    """The cubic spline through values on a regular grid in d dimensions: twice continuously differentiable.

    Its third derivative is continuous at the last nodes but one (not-a-knot), so that it is of fourth order up to the
    boundary. Outside of the grid it continues the polynomials at the boundary.

    Args:
        bounds: (d, 2), the lower and upper end of each axis; the spline has its dtype and device.
        values: (n_1, ..., n_d, m) at the points of the grid, 4 or more along each axis.

    Cost: a product of 4^d by m numbers a point.
    """

    bounds: Tensor
    coefficients: Tensor
    basis: Tensor
    steps: Tensor
    strides: Tensor
    offsets: Tensor
    last: Tensor

    def __init__(self, bounds: Tensor, values: Tensor) -> None:
        super().__init__()
        d, shape = len(bounds), values.shape[:-1]
        found = values.detach().double().cpu().numpy()
        for axis in range(d):
            found = np.moveaxis(_coefficients(np.moveaxis(found, axis, 0)), 0, axis)
        flat = torch.from_numpy(np.ascontiguousarray(found)).flatten(0, -2)
        last = torch.tensor(shape, dtype=torch.long, device=bounds.device) - 1
        strides = [math.prod(n + 2 for n in shape[k + 1 :]) for k in range(d)]
        offsets = torch.zeros(1, dtype=torch.long, device=bounds.device)
        for stride in strides:
            offsets = (offsets[:, None] + stride * torch.arange(4, device=bounds.device)).flatten()
        self.register_buffer("bounds", bounds.detach().clone())
        self.register_buffer("coefficients", flat.to(bounds))
        self.register_buffer("steps", (bounds[:, 1] - bounds[:, 0]).detach() / last)
        self.register_buffer("basis", torch.tensor(_BASIS, dtype=bounds.dtype, device=bounds.device) / 6)
        self.register_buffer("strides", torch.tensor(strides, dtype=torch.long, device=bounds.device))
        self.register_buffer("offsets", offsets)
        self.register_buffer("last", last - 1)

    def inside(self, z: Tensor) -> Tensor:
        """Which points (..., d) lie on the grid, but for rounding: (...)."""
        low, high = self.bounds.unbind(1)
        slack = 8 * torch.finfo(z.dtype).eps * torch.maximum(high - low, self.bounds.abs().amax(1))
        return ((z >= low - slack) & (z <= high + slack)).all(-1)

    def forward(self, z: Tensor) -> Tensor:
        """Values (n, m) at points (n, d)."""
        cell, t = self._locate(z)
        return self._combine(cell, self._weights(t, [[0] * z.shape[1]]))[:, 0]

    def value_and_slopes(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Values (n, m) at points (n, d), and their derivatives (n, d, m) by each coordinate."""
        cell, t = self._locate(z)
        found = self._combine(cell, self._weights(t, _orders(z.shape[1])))
        return found[:, 0], found[:, 1:]

    def jet(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values (n, m) at points (n, d), and their first (n, d, m) and second derivatives (n, d, d, m)."""
        cell, t = self._locate(z)
        d = z.shape[1]
        rows, columns = torch.triu_indices(d, d, device="cpu")
        found = self._combine(cell, self._weights(t, _orders(d, second=True)))
        places = torch.empty(d, d, dtype=torch.long, device="cpu")
        places[rows, columns] = places[columns, rows] = torch.arange(1 + d, found.shape[1], device="cpu")
        return found[:, 0], found[:, 1 : 1 + d], found[:, places]

    def _locate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The first coefficient (n,) of the cell that points are in, and where they are in it: (n, d), from 0 to 1."""
        place = (z - self.bounds[:, 0]) / self.steps
        cell = torch.minimum(place.detach().floor().nan_to_num().clamp_min(0), self.last).long()
        return (cell * self.strides).sum(1), place - cell

    def _weights(self, t: Tensor, orders: list[list[int]]) -> Tensor:
        """Products of B-splines (n, k, 4^d), differentiated in k ways: how often by each of the d coordinates."""
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        powers = [(one, t, t * t, t * t * t)]
        if len(orders) > 1:
            powers += [(zero, one, 2 * t, 3 * t * t), (zero, zero, 2 * one, 6 * t)]
        steps = self.steps[:, None]
        highest = max(max(order) for order in orders)
        tables = [torch.stack(powers[i], -1) @ self.basis / steps**i for i in range(highest + 1)]  # (n, d, 4) each
        product = torch.stack([tables[order[0]][:, 0] for order in orders], 1)
        for axis in range(1, t.shape[1]):
            rows = torch.stack([tables[order[axis]][:, axis] for order in orders], 1)
            product = (product[..., None] * rows[:, :, None]).flatten(2)
        return product

    def _combine(self, cell: Tensor, weights: Tensor) -> Tensor:
        """Sums (n, k, m) of the coefficients of cells (n,) by weights (n, k, 4^d)."""
        near = self.coefficients.index_select(0, (cell[:, None] + self.offsets).reshape(-1))
        return weights @ near.reshape(len(cell), len(self.offsets), self.coefficients.shape[1])


@functools.lru_cache(maxsize=8)
def _orders(d: int, *, second: bool = False) -> list[list[int]]:
    """How often to differentiate by each of d coordinates: not at all, once by each, and once by each pair of them."""
    axes = np.eye(d, dtype=int)
    pairs = [axes[i] + axes[j] for i in range(d) for j in range(i, d)] if second else []
    return [[0] * d, *axes.tolist(), *(pair.tolist() for pair in pairs)]


def _coefficients(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients (n + 2, ...) of the uniform B-splines whose sum goes through values (n, ...), not-a-knot."""
    n = len(values)
    bands = np.zeros((2 * _BAND + 1, n + 2))

    def enter(row: int, first: int, numbers: tuple[float, ...]) -> None:
        columns = first + np.arange(len(numbers))
        bands[_BAND + row - columns, columns] = numbers

    enter(0, 0, (1, -4, 6, -4, 1))
    enter(n + 1, n - 3, (1, -4, 6, -4, 1))
    for row in range(1, n + 1):
        enter(row, row - 1, (1 / 6, 4 / 6, 1 / 6))
    right = np.pad(values.reshape(n, -1), ((1, 1), (0, 0)))
    return solve_banded((_BAND, _BAND), bands, right).reshape(n + 2, *values.shape[1:])
