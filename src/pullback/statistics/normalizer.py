r"""Normalizers and moments of Riemannian normal distributions by Monte Carlo on the exponential map.

With :math:`u_s \sim N(0, \Sigma)` and the factors :math:`\theta` of :mod:`~pullback.statistics.volume`

.. math:: C = \int e^{-u' \Sigma^{-1} u / 2} \, \theta(u) \, du = \sqrt{(2 \pi)^d \det \Sigma} \; E_s[\theta(u_s)]

and likewise for the moments of u under the distribution. Draws serve for other covariances, too, by weights, as long as
enough of them count: geodesics are cast anew only then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pullback.statistics.volume import Cast
from pullback.types import Matrices

_ROUNDS = 100  # of the fixed point for a covariance
_CLOSE = 1e-8
_FEW = 0.5  # of the draws have to count
_FACTOR = 2.0  # by which an axis of a covariance may change in one round


@dataclass(frozen=True)
class Normalizer:
    """What draws tell of K distributions.

    Attributes:
        log_value: (K,) log C.
        error: (K,) its standard error.
        first: (K, d) the expectation of u.
        second: (K, d, d) and of uu'.
        share: (K,) how many of the draws count, effectively: 1 for the covariances that they were drawn with.
    """

    log_value: Tensor
    error: Tensor
    first: Tensor
    second: Tensor
    share: Tensor


def standard_draws(k: int, n: int, d: int, *, generator: Generator, like: Tensor) -> Tensor:
    """Standard normal numbers (K, S, d), S even: in pairs of opposites, and scaled to have the covariance 1 exactly.

    The first makes odd moments vanish where the geometry is symmetric, the second gives exact moments in flat space.
    """
    half = torch.randn(k, n // 2, d, generator=generator, dtype=torch.float64, device=generator.device)
    if n // 2 > d:
        lower = torch.linalg.cholesky(half.mT @ half / (n // 2))
        half = torch.linalg.solve_triangular(lower, half.mT, upper=False).mT
    return torch.cat((half, -half), 1).to(like)


def normalizer(cast: Cast, drawn: Matrices, covariances: Matrices) -> Normalizer:
    """The normalizers for covariances (K, d, d), of geodesics cast with others, `drawn` (K, d, d)."""
    u, factor = cast.u, cast.factor
    d = u.shape[-1]
    logs = _log_normal(u, covariances) - _log_normal(u, drawn)
    weight = torch.softmax(logs, -1)  # (K, S), of sum one
    share = 1 / (len(weight[0]) * weight.square().sum(-1))
    mean = (weight * factor).sum(-1)
    terms = len(weight[0]) * weight * (factor - mean[:, None])
    pairs = 0.5 * (terms[:, : terms.shape[1] // 2] + terms[:, terms.shape[1] // 2 :])
    error = pairs.std(-1) / math.sqrt(pairs.shape[1]) / mean
    gain = weight * (factor - 1)  # flat space needs no draws: these only say how it differs
    first = torch.einsum("ks,ksi->ki", gain, u) / mean[:, None]
    second = (covariances + torch.einsum("ks,ksi,ksj->kij", gain, u, u)) / mean[:, None, None]
    volume = 0.5 * (d * math.log(2 * math.pi) + torch.linalg.slogdet(covariances).logabsdet)
    return Normalizer(volume + mean.log(), error, first, second, share)


def matched(cast: Cast, drawn: Matrices, covariances: Matrices, targets: Matrices) -> Matrices:
    r"""Covariances (K, d, d) for which the expectation of uu' is the target (K, d, d).

    That is the likelihood equation for the covariance. Found by :math:`\Sigma \leftarrow A \Sigma A` with the positive
    A that brings the expectation to the target; it ends early where too few draws would count, or no distribution has
    so large a second moment.
    """
    found, going = covariances, torch.ones(len(covariances), dtype=torch.bool, device=covariances.device)
    for _ in range(_ROUNDS):
        now = normalizer(cast, drawn, found)
        change = _transport(now.second, targets)
        new = change @ found @ change.mT
        new = 0.5 * (new + new.mT)
        usable = torch.isfinite(new).flatten(1).all(1) & (normalizer(cast, drawn, new).share > _FEW)
        going &= usable
        off = (change - torch.eye(change.shape[-1], dtype=change.dtype, device=change.device)).flatten(1).norm(dim=1)
        found = torch.where(going[:, None, None], new, found)
        going &= off > _CLOSE
        if not going.any():
            break
    return found


def _transport(a: Matrices, b: Matrices) -> Matrices:
    """The positive matrices M (K, d, d) with M A M = B, their eigenvalues within limits."""
    root = _root(b)
    middle = root @ a @ root
    values, vectors = torch.linalg.eigh(0.5 * (middle + middle.mT))
    scaled = vectors @ torch.diag_embed(values.clamp_min(torch.finfo(a.dtype).tiny).rsqrt()) @ vectors.mT
    found = root @ scaled @ root
    values, vectors = torch.linalg.eigh(0.5 * (found + found.mT))
    limit = math.sqrt(_FACTOR)
    return vectors @ torch.diag_embed(values.clamp(1 / limit, limit)) @ vectors.mT


def _root(b: Matrices) -> Matrices:
    values, vectors = torch.linalg.eigh(b)
    return vectors @ torch.diag_embed(values.clamp_min(0).sqrt()) @ vectors.mT


def _log_normal(u: Tensor, covariances: Matrices) -> Tensor:
    """Logarithms of normal densities (K, n), but for a constant, at u (K, n, d)."""
    return -0.5 * squares(u, covariances) - 0.5 * torch.linalg.slogdet(covariances).logabsdet[:, None]


def squares(u: Tensor, covariances: Matrices) -> Tensor:
    """u' Sigma^-1 u (K, n) of tangents u (K, n, d)."""
    lower = torch.linalg.cholesky(covariances)
    return torch.linalg.solve_triangular(lower, u.mT, upper=False).square().sum(-2)
