"""Random walks in the metric: the driftless walk of the paper, and Brownian motion."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from pullback import _checks
from pullback.geodesics import Status
from pullback.metrics import Metric
from pullback.statistics.domains import domain_of
from pullback.statistics.steps import Driftless, Geodesic, Metropolis, Scheme
from pullback.types import Nodes, Points, Scalars

DomainLike = Tensor | Callable[[Tensor], Tensor] | None
_FACTOR = 4.0  # that a squared length may change by over a step, for the metric to be resolved
_SHARE = 0.01  # of the steps that may do worse
_ACCEPTED = 0.5  # of the steps of Metropolis' rule, at least
_AT_END = 1e-9  # of a step: less is rounding
_REASONS = {
    Status.LEFT_DOMAIN: "left the region where the metric is finite and regular",
    Status.MAX_STEPS: "ran into a place where the metric changes so fast that a step would take more than max_substeps",
}


@dataclass(frozen=True)
class Walk:
    """Walks and what is known about them: one entry for each (...).

    Attributes:
        points: (..., n_steps + 1, d); NaN from where a walk was lost.
        codes: (...) position of the :class:`Status` in that enumeration: CONVERGED, LEFT_DOMAIN or MAX_STEPS.
        steps: (...) that were taken: n_steps unless the walk was lost.
        substeps: (...) that these were made of.
        refused: (...) substeps that were not made, for they would have left the domain or Metropolis' rule forbids
            them.
        evaluations: (...) of the decoder.
    """

    points: Tensor
    codes: Tensor
    steps: Tensor
    substeps: Tensor
    refused: Tensor
    evaluations: Tensor

    @property
    def status(self) -> Status | np.ndarray:
        """The status of a single walk, or an array of them (object dtype) of the batch shape."""
        return np.array(list(Status), dtype=object)[self.codes.cpu().numpy()]

    @property
    def finished(self) -> Tensor:
        """Which walks took all steps: bool (...)."""
        return self.codes == Status.CONVERGED.code

    @property
    def acceptance(self) -> Scalars:
        """The share of substeps that were made: (...)."""
        return 1 - self.refused / self.substeps.clamp_min(1)

    @property
    def message(self) -> str:
        """How the whole went, in words: which walks were lost and why."""
        codes = self.codes.reshape(-1)
        lines = [f"{int((codes == Status.CONVERGED.code).sum())} of {len(codes)} walks took all their steps"]
        for status, reason in _REASONS.items():
            rows = (codes == status.code).nonzero().reshape(-1).tolist()
            if rows:
                shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
                lines.append(f"{len(rows)} {reason} (walks {shown}); their points are NaN from there on")
        return "; ".join(lines)

    def __repr__(self) -> str:
        return f"Walk({tuple(self.points.shape)}: {self.message})"


@overload
def random_walk(
    metric: Metric, start: Points, n_steps: int, step: float, *, generator: Generator | None = None,
    domain: DomainLike = None, full: Literal[False] = False, progress: bool = False,
) -> Nodes: ...  # fmt: skip


@overload
def random_walk(
    metric: Metric, start: Points, n_steps: int, step: float, *, generator: Generator | None = None,
    domain: DomainLike = None, full: Literal[True], progress: bool = False,
) -> Walk: ...  # fmt: skip


def random_walk(
    metric: Metric,
    start: Points,
    n_steps: int,
    step: float,
    *,
    generator: Generator | None = None,
    domain: DomainLike = None,
    full: bool = False,
    progress: bool = False,
) -> Nodes | Walk:
    r"""The random walk of Arvanitidis, Hansen and Hauberg: steps of one size in the metric, and no drift.

    .. math:: z_{n+1} = z_n + s \, G(z_n)^{-1/2} \epsilon_n, \qquad \epsilon_n \sim N(0, I)

    Steps are small where the metric is large, so that the walk hardly enters the walls around the data. It is not the
    diffusion of the metric, which has a drift: that is :func:`brownian_motion`. Where this walk is often depends on the
    coordinates: on the torus all angles are equally likely in the end, and not all places. Any root of the inverse
    gives the same law; here it is that of Cholesky.

    Args:
        metric: The metric.
        start: Points (..., d), one for each walk; many from one point: ``z.expand(1000, -1)``.
        n_steps: How many steps.
        step: s, in units of the data space: the standard deviation of a step along each axis of an orthonormal frame.
        generator: For random numbers. Default: torch's global one.
        domain: Where walks have to stay: bounds (d, 2), which reflect them, or a function of points (n, d) that is True
            (n,) inside: steps that would leave are then not made.
        full: Return a :class:`Walk`, which also tells how each ended and what it took.
        progress: Whether to show a bar.

    Returns:
        The walks (..., n_steps + 1, d), the start first; NaN from where a walk left the region in which the metric is
        finite and regular. Nothing carries gradients.

    Raises:
        ValueError: A start is outside of the domain, or the metric is singular there; a setting is out of range.

    Warns:
        StatisticsWarning: Walks were lost: how many, which, why. The metric changes by more than a factor of four over
            more than 1% of the steps: the walk does not resolve it, and a smaller step is advised.

    Cost:
        One matrix a step, d + 3 evaluations. On a :class:`Tabulated` metric 1,000 walks of 1,000 steps take seconds.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), section 6.4 and the algorithm in the appendix. :cite:`oddity`

    Example:
        >>> stretched = pb.Pullback(lambda z: z * torch.tensor([1.0, 10.0]))
        >>> walk = random_walk(stretched, torch.zeros(500, 2), 40, 0.1, generator=torch.Generator().manual_seed(0))
        >>> walk.shape
        torch.Size([500, 41, 2])
        >>> far = walk[:, -1].std(0)
        >>> bool((far[0] / far[1] / 10 - 1).abs() < 0.15)  # ten times as far along the axis that is ten times as short
        True
    """
    start, n_steps = _checked(metric, start, n_steps, step, "step")
    domain_ = domain_of(domain, start.reshape(-1, start.shape[-1]))
    scheme = Driftless(metric, domain_)
    walk = walked(scheme, start, n_steps, step**2, generator=generator, progress=progress)
    _warn_of_lost(walk)
    _warn_of_steps(scheme, step)
    return walk if full else walk.points


@overload
def brownian_motion(
    metric: Metric, start: Points, n_steps: int, time: float, *, scheme: Literal["geodesic", "metropolis"] = "geodesic",
    generator: Generator | None = None, domain: DomainLike = None, max_bend: float = 0.25, max_substeps: int = 2_000,
    full: Literal[False] = False, progress: bool = False,
) -> Nodes: ...  # fmt: skip


@overload
def brownian_motion(
    metric: Metric, start: Points, n_steps: int, time: float, *, scheme: Literal["geodesic", "metropolis"] = "geodesic",
    generator: Generator | None = None, domain: DomainLike = None, max_bend: float = 0.25, max_substeps: int = 2_000,
    full: Literal[True], progress: bool = False,
) -> Walk: ...  # fmt: skip


def brownian_motion(
    metric: Metric,
    start: Points,
    n_steps: int,
    time: float,
    *,
    scheme: Literal["geodesic", "metropolis"] = "geodesic",
    generator: Generator | None = None,
    domain: DomainLike = None,
    max_bend: float = 0.25,
    max_substeps: int = 2_000,
    full: bool = False,
    progress: bool = False,
) -> Nodes | Walk:
    r"""Brownian motion: the diffusion whose generator is half the Laplace-Beltrami operator of the metric.

    .. math:: dz^i = -\tfrac12 G^{jk} \Gamma^i_{jk} \, dt + \big(G^{-1/2} dW\big)^i, \qquad
        -\tfrac12 G^{jk} \Gamma^i_{jk} = \frac{1}{2 \sqrt{g}} \, \partial_j \big(\sqrt{g} \, G^{ij}\big),
        \quad g = \det G

    Its variance grows by one, in squared units of the data space, along each axis of an orthonormal frame in one unit
    of time; its density is the heat kernel; it does not depend on coordinates, and in the long run it is uniform with
    respect to the volume. So it does enter walls around data, where most of the volume is: to stay near the data, give
    a domain, or take :func:`random_walk`, which is slower there.

    "geodesic" walks along a geodesic to second order, a random one at each step:

    .. math:: z_{n+1} = z_n + v - \tfrac12 \Gamma(v, v), \qquad v = \sqrt{h} \, G^{-1/2} \epsilon

    The mean of the last term is the drift, and two more evaluations of a decoder are all that it takes: the drift
    itself would take 5 d. Its weak order is one. Where the last term is not small, steps are subdivided: by what
    the steps before have met, not by what the step itself turns out to be, which would change the law.
    "metropolis" proposes the driftless step and refuses some, so that the uniform law is kept exactly, in any domain
    and with any step; its way there is less accurate (weak order one half).

    Args:
        metric: The metric.
        start: Points (..., d), one for each walk; many from one point: ``z.expand(1000, -1)``.
        n_steps: How many points of each walk to return, after the start.
        time: Of the whole walk, in squared units of the data space.
        scheme: "geodesic" or "metropolis".
        generator: For random numbers. Default: torch's global one.
        domain: Where walks have to stay: bounds (d, 2), which reflect them in the metric, or a function of points
            (n, d) that is True (n,) inside: steps that would leave are then not made (weak order one half).
        max_bend: For "geodesic", how long the last term above may be, relative to v in the mean, before steps are
            subdivided; inf: never.
        max_substeps: In one step; a walk that would need more ends there. Inside of a steep wall a step may take
            thousands.
        full: Return a :class:`Walk`, which also tells how each ended and what it took.
        progress: Whether to show a bar.

    Returns:
        The walks (..., n_steps + 1, d), the start first; NaN from where a walk left the region in which the metric is
        finite and regular. Nothing carries gradients.

    Raises:
        ValueError: A start is outside of the domain, or the metric is singular there; a setting is out of range.

    Warns:
        StatisticsWarning: Walks were lost: how many, which, why. "metropolis" refused more than half of the steps: more
            steps are advised.

    Cost:
        A substep: "geodesic" d + 5 evaluations, for metrics without an immersion a matrix and a Christoffel vector;
        "metropolis" d + 3.

    Reference:
        Schwarz, Herrmann, Sturm, Wardetzky (2023) for steps along geodesics to second order :cite:`retractions`;
        Bou-Rabee, Donev, Vanden-Eijnden (2014) for Metropolis' rule :cite:`selfadjoint`; Bossy, Gobet, Talay (2004) for
        reflection :cite:`symmetrized`.

    Example:
        >>> sphere, pole = pb.surfaces.Sphere(), torch.zeros(2, dtype=torch.float64)
        >>> generator = torch.Generator().manual_seed(0)
        >>> walk = brownian_motion(pb.Pullback(sphere), pole.expand(2000, 2), 20, 0.5, generator=generator)
        >>> cosine = sphere.distance(pole, walk[:, -1]).cos().mean()
        >>> bool((cosine - torch.tensor(-0.5).exp()).abs() < 0.03)  # the heat kernel has E cos r = exp(-t)
        True
    """
    start, n_steps = _checked(metric, start, n_steps, time, "time")
    _checks.positive(max_bend, "max_bend")
    _checks.at_least(max_substeps, 1, "max_substeps")
    domain_ = domain_of(domain, start.reshape(-1, start.shape[-1]))
    if scheme == "geodesic":
        steps: Scheme = Geodesic(metric, domain_, max_bend)
    elif scheme == "metropolis":
        steps = Metropolis(metric, domain_)
    else:
        raise ValueError(f"`scheme` is {scheme!r}: want 'geodesic' or 'metropolis'.")
    h = time / n_steps
    walk = walked(steps, start, n_steps, h, generator=generator, progress=progress, max_substeps=max_substeps)
    _warn_of_lost(walk)
    if scheme == "metropolis":
        _warn_of_refusals(walk, n_steps)
    return walk if full else walk.points


def _checked(metric: Metric, start: Points, n_steps: int, size: float, name: str) -> tuple[Tensor, int]:
    """The start without its gradient, and the number of steps; or an error."""
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    start = _checks.points(start, "start").detach()
    _checks.at_least(n_steps, 1, "n_steps")
    _checks.positive_and_finite(size, name)
    return start, int(n_steps)


def walked(
    scheme: Scheme,
    start: Points,
    n_steps: int,
    h: float,
    *,
    generator: Generator | None,
    progress: bool = False,
    max_substeps: int = 1,
) -> Walk:
    """Walks of steps of duration h from starts (..., d), each at a pace of its own."""
    batch, d = start.shape[:-1], start.shape[-1]
    z = start.reshape(-1, d).clone()
    n = len(z)
    points = z.new_full((n, n_steps + 1, d), torch.nan)
    points[:, 0] = z
    if not n:
        nothing = torch.zeros(batch, dtype=torch.long, device=z.device)
        return Walk(points.reshape(*batch, n_steps + 1, d), nothing, nothing, nothing, nothing, nothing)
    with torch.no_grad():
        carry = scheme.begin(z, h)
    done, substeps, refused, since, codes = (torch.zeros(n, dtype=torch.long, device=z.device) for _ in range(5))
    left = torch.full_like(z[:, 0], h)  # time to the next point
    rows = torch.arange(n, device=z.device)
    with tqdm(total=n * n_steps, desc="walks", unit="step", disable=not progress) as bar, torch.no_grad():
        while len(rows):
            noise, uniform = _drawn(z[rows], generator)
            held = {name: t[rows] for name, t in carry.items()}
            step, longest = left[rows], scheme.longest(held, d)
            step = step if longest is None else torch.minimum(step, longest)
            new, stayed = scheme.step(z[rows], step, noise, held, uniform)
            for name, t in held.items():
                carry[name][rows] = t
            z[rows], left[rows] = new, left[rows] - step
            substeps[rows], since[rows], refused[rows] = substeps[rows] + 1, since[rows] + 1, refused[rows] + stayed
            lost = ~torch.isfinite(new).all(-1)
            arrived = ~lost & (left[rows] <= _AT_END * h)
            stuck = ~lost & ~arrived & (since[rows] >= max_substeps)
            codes[rows[lost]], codes[rows[stuck]] = Status.LEFT_DOMAIN.code, Status.MAX_STEPS.code
            there = rows[arrived]
            done[there] += 1
            points[there, done[there]] = z[there]
            left[there], since[there] = h, 0
            bar.update(len(there))
            rows = rows[~lost & ~stuck & (done[rows] < n_steps)]
    evaluations = scheme.first_cost(d) + substeps * scheme.cost(d)
    _lose_last(scheme, z, points, codes, done)
    shaped = (t.reshape(batch) for t in (codes, done, substeps, refused, evaluations))
    return Walk(points.reshape(*batch, n_steps + 1, d), *shaped)


def _lose_last(scheme: Scheme, z: Tensor, points: Tensor, codes: Tensor, done: Tensor) -> None:
    """Take back the point from which a walk could not go on: there the metric is singular, or not finite."""
    lost = (codes == Status.LEFT_DOMAIN.code).nonzero().reshape(-1)
    if isinstance(scheme, Geodesic):  # where others look before they arrive
        finished = (codes == Status.CONVERGED.code).nonzero().reshape(-1)
        singular = finished[~scheme.regular(z[finished])]
        codes[singular] = Status.LEFT_DOMAIN.code
        blind = lost[done[lost] > 0]
        blind = blind[~scheme.regular(points[blind, done[blind]])]
        lost = torch.cat((singular, blind))
        points[lost, done[lost]] = torch.nan
        done[lost] -= 1


def _drawn(z: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Standard normal numbers (k, d) and uniform ones (k,) for walks at z (k, d)."""
    device = z.device if generator is None else generator.device
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=device)
    uniform = torch.rand(len(z), generator=generator, dtype=z.dtype, device=device)
    return noise.to(z.device), uniform.to(z.device)


def _warn_of_lost(walk: Walk) -> None:
    if not walk.finished.all():
        warnings.warn(walk.message + ".", _checks.StatisticsWarning, stacklevel=3)


def _warn_of_steps(scheme: Driftless, step: float) -> None:
    changes = torch.cat(scheme.changes) if scheme.changes else torch.zeros(0)
    limit = float(torch.tensor(_FACTOR).log())
    share = float((changes > limit).double().mean()) if len(changes) else 0.0
    if share > _SHARE:
        worst = float(changes.kthvalue(max(1, round((1 - _SHARE) * len(changes)))).values)
        warnings.warn(
            f"`step` is {step:g}: over {100 * share:.2g}% of the steps the squared length of the step itself changes "
            f"by more than a factor of {_FACTOR:g} from one end to the other: the walk does not resolve the metric. "
            f"Try step={step * limit / worst:.2g}.",
            _checks.StatisticsWarning,
            stacklevel=3,
        )


def _warn_of_refusals(walk: Walk, n_steps: int) -> None:
    accepted = float(1 - walk.refused.sum() / walk.substeps.sum().clamp_min(1))
    if accepted < _ACCEPTED:
        # refusals fall with the root of the step
        advised = n_steps * ((1 - accepted) / (1 - _ACCEPTED) * 1.5) ** 2
        warnings.warn(
            f"{100 * (1 - accepted):.0f}% of the steps were refused: they are too large for the metric, or for the "
            f"domain. Try n_steps={advised:.0f}.",
            _checks.StatisticsWarning,
            stacklevel=3,
        )
