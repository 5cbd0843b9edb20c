"""Heat flow on a grid: the equation of diffusion in the metric, by finite elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import splu
from torch import Tensor

from pullback import _checks
from pullback.curvature.immersion import gram_frame
from pullback.metrics import Metric
from pullback.statistics.steps import matrices
from pullback.types import Points

Array = NDArray[Any]
_RESOLUTION = {1: 1024, 2: 128, 3: 28}  # cells along each axis, by dimension
_GAMMA = 1 - 2**-0.5  # of the two-stage method that damps what the grid does not resolve


@dataclass(frozen=True, eq=False, repr=False)
class HeatGrid:
    r"""Functions on a box by their values on a regular grid, linear along each axis in between.

    The heat equation :math:`\partial_t p = \tfrac12 \Delta p` in weak form is :math:`M \dot p = -\tfrac12 K p` with the
    volumes M at the nodes and :math:`K_{ab} = \int \sqrt{g} \, G^{ij} \partial_i \phi_a \partial_j \phi_b`, G in the
    middle of each cell. Nothing flows through the boundary, and the mass is kept to rounding.

    Attributes:
        low, size: (d,) where the grid begins and the length of its cells, in latent units.
        shape: Nodes along each axis.
        volumes: M (N,), the Riemannian volume that belongs to each node.
        stiffness: K (N, N).
        n_lost: Cells where the metric is singular or not finite: they have no volume, and nothing flows through them.
    """

    low: Array
    size: Array
    shape: tuple[int, ...]
    volumes: Array
    stiffness: csr_array
    n_lost: int

    @classmethod
    def of(cls, metric: Metric, bounds: Tensor, resolution: int | Sequence[int] | None = None) -> HeatGrid:
        """The grid for a metric on a box (d, 2), d <= 3, of so many cells along each axis. Cost: a matrix a cell."""
        wanted = _RESOLUTION.get(len(bounds), 2) if resolution is None else resolution
        cells = _checks.grid(bounds, wanted, otherwise="use kernel='distance'")
        d = len(cells)
        low = bounds[:, 0].double().cpu().numpy()
        size = (bounds[:, 1] - bounds[:, 0]).double().cpu().numpy() / cells
        index = np.stack(np.meshgrid(*map(np.arange, cells), indexing="ij"), -1).reshape(-1, d)
        centers = torch.from_numpy(low + (index + 0.5) * size).to(bounds)
        frame, regular = gram_frame(matrices(metric, centers))
        frame = torch.where(regular[:, None, None], frame, 0).double()
        density = torch.where(regular, -frame.diagonal(dim1=-2, dim2=-1).log().sum(-1), -math.inf).exp()  # sqrt(det G)
        flow = (density[:, None, None] * (frame @ frame.mT)).cpu().numpy()
        shape = tuple(count + 1 for count in cells)
        corners = np.array(list(itertools.product((0, 1), repeat=d)))
        nodes: Any = np.ravel_multi_index(tuple((index[:, None] + corners).transpose(2, 0, 1)), shape)  # (cells, 2^d)
        share = density.cpu().numpy() * size.prod() / len(corners)
        volumes = np.bincount(nodes.reshape(-1), np.repeat(share, len(corners)), minlength=math.prod(shape))
        local = np.einsum("cij,ijab->cab", flow, _gradients(size, corners))
        rows, columns = (np.broadcast_to(x, local.shape).reshape(-1) for x in (nodes[:, :, None], nodes[:, None]))
        n = math.prod(shape)
        stiffness = csr_array(coo_array((local.reshape(-1), (rows, columns)), shape=(n, n)))
        return cls(low, size, shape, volumes, stiffness, int((~regular).sum()))

    def weights(self, z: Points) -> csr_array:
        """What reads a function at points (n, d) off its values at the nodes: (n, N), NaN outside of the box."""
        at = (z.detach().double().cpu().numpy() - self.low) / self.size
        last = np.array(self.shape) - 1
        rounding = 1e-9 * last
        inside = ((at >= -rounding) & (at <= last + rounding)).all(1)
        cell = np.clip(np.floor(np.nan_to_num(at)), 0, last - 1).astype(np.int64)
        share = np.clip(np.nan_to_num(at) - cell, 0, 1)
        corners = np.array(list(itertools.product((0, 1), repeat=len(last))))
        parts = np.where(corners == 1, share[:, None], 1 - share[:, None]).prod(-1)  # (n, 2^d)
        parts[~inside] = np.nan
        nodes: Any = np.ravel_multi_index(tuple((cell[:, None] + corners).transpose(2, 0, 1)), self.shape)
        rows = np.broadcast_to(np.arange(len(z))[:, None], nodes.shape)
        entries = (parts.reshape(-1), (rows.reshape(-1), nodes.reshape(-1)))
        return csr_array(coo_array(entries, shape=(len(z), len(self.volumes))))

    def flow(self, heat: Array, time: float, n_steps: int) -> Array:
        """Heat (N,) or (N, k) at the nodes after some time, by steps of second order that damp what is rough."""
        mass, half = diags_array(np.where(self.volumes > 0, self.volumes, 1.0)), 0.5 * self.stiffness
        h = time / n_steps
        solve = splu((mass + _GAMMA * h * half).tocsc()).solve
        for _ in range(n_steps):
            first = solve(-(half @ heat))
            second = solve(-(half @ (heat + (1 - _GAMMA) * h * first)))
            heat = heat + h * ((1 - _GAMMA) * first + _GAMMA * second)
        return heat


def _gradients(size: Array, corners: Array) -> Array:
    """The integrals (d, d, 2^d, 2^d) of products of slopes of a cell's functions over the cell."""
    d = len(size)
    slope = np.array([[1.0, -1.0], [-1.0, 1.0]])
    mean = np.array([[1 / 3, 1 / 6], [1 / 6, 1 / 3]])
    mixed = np.array([[-0.5, -0.5], [0.5, 0.5]])  # slope of the first, value of the second
    found = np.empty((d, d, len(corners), len(corners)))
    for i, j in itertools.product(range(d), repeat=2):
        factors = np.ones((len(corners), len(corners)))
        for axis in range(d):
            a, b = corners[:, None, axis], corners[None, :, axis]
            if axis == i == j:
                factors = factors * slope[a, b] / size[axis]
            elif axis == i:
                factors = factors * mixed[a, b]
            elif axis == j:
                factors = factors * mixed[b, a]
            else:
                factors = factors * mean[a, b] * size[axis]
        found[i, j] = factors
    return found
