"""Small data whose shape is known: two clusters on a curved surface, and a surface with a hole."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from pullback import _checks
from pullback.datasets.dataset import Dataset

SHAPES = ("blobs", "moons")


def two_clusters(
    n: int = 1000, *, shape: str = "blobs", n_features: int = 3, noise: float = 0.05, seed: int = 0
) -> Dataset:
    r"""Two clusters in the plane, lifted to a surface in R^D that curves.

    .. math:: x = \big(p, \, \tfrac12 \sin(k + \tfrac32 (p_1 \cos k + p_2 \sin k))_{k = 0, \dots, D - 3}\big) + \epsilon

    The points p of blobs are normal, with standard deviation 0.5 around (-1.5, 0) and (1.5, 0); those of moons lie on
    two half circles of radius 1 that reach into each other.

    Args:
        n: Number of samples, 2 or more; the first half of them, rounded up, is the first cluster.
        shape: ``"blobs"`` or ``"moons"``.
        n_features: D, 2 or more; 2: no lift.
        noise: Standard deviation of :math:`\epsilon`, normal in all D dimensions.
        seed: Of the draws; the global random state is neither used nor changed.

    Returns:
        Samples (n, D), labels 0 and 1.

    Raises:
        ValueError: An unknown shape, a negative noise, or less than two samples or features.

    Example:
        >>> data = two_clusters(100, seed=1)
        >>> data.samples.shape, data.labels.bincount().tolist()
        (torch.Size([100, 3]), [50, 50])
    """
    for name, value in (("n", n), ("n_features", n_features)):
        _checks.at_least(value, 2, name)
    _not_negative(noise)
    if shape not in SHAPES:
        raise ValueError(f"`shape` is {shape!r}: wanted one of {', '.join(SHAPES)}")
    generator = Generator().manual_seed(seed)
    labels = (torch.arange(n, device="cpu") >= (n + 1) // 2).long()
    side = 2.0 * labels.double() - 1  # -1 and 1
    if shape == "blobs":
        p = 0.5 * _normal(generator, n, 2)
        p[:, 0] += 1.5 * side
    else:
        angle = math.pi * torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")
        p = -side[:, None] * torch.stack((angle.cos() - 0.5, angle.sin() - 0.25), 1)
    k = torch.arange(n_features - 2, dtype=torch.float64, device="cpu")
    lift = 0.5 * (k + 1.5 * (p[:, :1] * k.cos() + p[:, 1:] * k.sin())).sin()
    x = torch.cat((p, lift), 1) + noise * _normal(generator, n, n_features)
    return Dataset(x.float(), labels, (n_features,), f"two-{shape}")


def noisy_surface(n: int = 2000, *, noise: float = 0.025, hole: float = 0.2, seed: int = 0) -> Dataset:
    r"""A curved sheet in R^3 with a hole: :math:`x = (p_1, p_2, \tfrac14 \sin 2 \pi p_1 + \epsilon)`.

    The points p are uniform in the square of side 1 around the origin, without the disk of radius `hole`. With the
    defaults this is the surface of a published example of geodesics that go around a hole.

    Args:
        n: Number of samples.
        noise: Standard deviation of :math:`\epsilon`, in the third coordinate alone.
        hole: Radius, at least 0 and below 0.7, so that something is left.
        seed: Of the draws; the global random state is neither used nor changed.

    Returns:
        Samples (n, 3); no labels.

    Raises:
        ValueError: A negative noise, a hole that leaves nothing, or no sample.

    Reference:
        The surface of Arvanitidis, Hansen, Hauberg (2018), in the code of their first author. :cite:`oddity`

    Example:
        >>> flat = noisy_surface(500).samples[:, :2]
        >>> bool(flat.norm(dim=1).min() >= 0.2)
        True
    """
    _checks.at_least(n, 1, "n")
    _not_negative(noise)
    if not 0 <= hole <= _LARGEST_HOLE:
        raise ValueError(f"`hole` is {hole}: wanted a radius from 0 to {_LARGEST_HOLE}, or it leaves nothing")
    generator = Generator().manual_seed(seed)
    p = torch.empty(0, 2, dtype=torch.float64, device="cpu")
    while len(p) < n:
        square = torch.rand(2 * n, 2, generator=generator, dtype=torch.float64, device="cpu") - 0.5
        p = torch.cat((p, square[square.norm(dim=1) >= hole]))[:n]
    height = 0.25 * (2 * math.pi * p[:, :1]).sin() + noise * _normal(generator, n, 1)
    return Dataset(torch.cat((p, height), 1).float(), None, (3,), "noisy-surface")


_LARGEST_HOLE = 0.65  # a corner of the square is 0.71 from its middle


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


def _not_negative(noise: float) -> None:
    if not 0 <= noise < math.inf:
        raise ValueError(f"`noise` is {noise}: wanted a standard deviation, 0 or more")
