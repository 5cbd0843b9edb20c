"""How curved a latent space is on the data, whether that can be believed, and what to do if it cannot."""

from __future__ import annotations

import torch
from torch import Generator
from tqdm.auto import tqdm

from pullback import _checks
from pullback.diagnostics import spectra
from pullback.diagnostics.growth import Cloud, profile
from pullback.diagnostics.lines import straight_against_geodesic
from pullback.diagnostics.records import (
    Direction,
    Findings,
    GeometryReport,
    Growth,
    Isometry,
    Lines,
    Off,
    Shell,
    Spectrum,
    Spread,
    Variance,
    Verdict,
)
from pullback.diagnostics.sources import creases, kind_of, variance
from pullback.diagnostics.verdict import advice, judged
from pullback.geodesics import GeodesicSolver, Relax
from pullback.metrics import Metric
from pullback.types import Points

__all__ = [
    "Direction", "GeometryReport", "Growth", "Isometry", "Lines", "Off", "Shell", "Spectrum", "Spread", "Variance",
    "Verdict", "check_geometry",
]  # fmt: skip

_CODES = 20_000  # that distances to the data are measured from, and pairs drawn from
_MATRICES = 1 << 25  # numbers in the matrices that are held at once
_LEAST = 32  # points, however large the matrices
_SOLVER = Relax(max_evaluations=20_000)
_LOOKS = 16  # codes to look at before all of them are


def check_geometry(
    metric: Metric,
    codes: Points,
    *,
    n_pairs: int = 200,
    n_points: int = 2000,
    reach: float = 2.0,
    tol: float = 1e-3,
    solver: GeodesicSolver | str | None = None,
    generator: Generator | None = None,
    progress: bool = False,
) -> GeometryReport:
    r"""A check-up of a latent geometry: does the curvature matter on these data, and can the answer be believed?

    Measured are

    - at the codes and in a box around them: eigenvalues of :math:`G(z)`, rank, condition, log volume; latent directions
      that the decoder ignores;
    - on shells at growing distance r from the nearest code: the log stretch :math:`\tfrac1{2d} \log \det G`, and
      whether it grows with r, stays flat, reaches a plateau, rises and falls (a ring), or shrinks;
    - whether a variance is modeled, and its share of the metric; whether the decoder has creases;
    - how far G is from :math:`c I` and from a constant matrix: the relative standard deviation of the lengths of unit
      steps;
    - over random pairs of codes the Riemannian length of the straight line over that of the geodesic, with a bootstrap
      interval of its median.

    Box: uniform in the range of the codes and 25% of it on every side. Shells: points with the nearest code at r,
    marched to from random codes in random directions, at eight r up to `reach` times the spread. Directions without a
    length, if the rank is below d, are left out of the stretch.

    The verdict: flat when 95% of the straight lines are within 0.1% of geodesics; nearly flat when half of them are
    within 3% and 95% within 15%; strongly curved from 10% for half of them; else curved. It cannot be believed when
    the decoder ignores a direction, or when more than 1% of the codes have no metric, 10% of the geodesics failed, or
    5% of the straight lines are shorter than what was found as geodesics.

    Args:
        metric: The metric, of any kind.
        codes: Points (n, d) where the data are, n >= 2; float32 or float64, as the metric wants them. No encoder is
            needed: draws from the prior do for a GAN.
        n_pairs: Pairs of codes; no code is in two of them if there are enough.
        n_points: Codes at which the metric is looked at, if there are more; as many points in the box, and an eighth on
            each shell.
        reach: How far off the data to look, in root mean square distances of the codes to their mean.
        tol: Of the geodesics' lengths, relatively.
        solver: As for :func:`~pullback.geodesic`. Default: ``Relax(max_evaluations=20_000)``, so that a pair for which
            more are needed counts as failed: a check is to end.
        generator: Source of all that is random. Default: one that is seeded with 0, so that a call gives the same each
            time.
        progress: Whether to show bars.

    Returns:
        A record. ``print(report)`` shows the verdict first, then advice and numbers; ``report.to_dict()`` is for JSON.

    Raises:
        TypeError: `metric` is no metric, or `codes` no tensor.
        ValueError: `codes` are integers or in half precision, hold NaN (the row is named), are fewer than two, or all
            the same; a count or `reach` is not positive. What the metric raises at all codes is raised here, too.

    Cost:
        d + 3 evaluations at each of 3 n_points points, 2 d + 6 more at a thousand of them for the share of a variance;
        for a pair 99 to 356, and one :func:`~pullback.geodesic`. On the shipped model some 250,000, in ten seconds.

    Example:
        >>> import pullback as pb
        >>> codes = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> report = check_geometry(pb.Pullback(torch.nn.Linear(2, 5).double()), codes, n_pairs=20)
        >>> print(report.sentence)
        flat: straight lines are geodesics on these data (95% of the pairs: within 0.1%)
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)
    codes = _codes(codes)
    for name, value in (("n_pairs", n_pairs), ("n_points", n_points)):
        _checks.at_least(value, 1, name)
    _checks.positive_and_finite(reach, "reach")
    _checks.relative(tol, "tol")
    source = generator or Generator(device="cpu").manual_seed(0)
    _look(metric, codes, source)
    found = _measured(metric, codes, n_pairs, n_points, reach, tol, solver or _SOLVER, source, progress)
    verdict, sentence = judged(found)
    return GeometryReport(**vars(found), verdict=verdict, sentence=sentence, advice=advice(found, verdict))


def _measured(
    metric: Metric,
    codes: Points,
    n_pairs: int,
    n_points: int,
    reach: float,
    tol: float,
    solver: GeodesicSolver | str,
    source: Generator,
    progress: bool,
) -> Findings:
    d = codes.shape[1]
    n_points = min(n_points, max(_LEAST, _MATRICES // d**2))
    with tqdm(total=5, desc="check", unit="part", disable=not progress) as bar:
        rows = _some(len(codes), n_points, source).to(codes.device)
        data = spectra.sampled(metric, codes[rows])
        bar.update()
        cloud = Cloud(codes[_some(len(codes), _CODES, source).to(codes.device)])
        box = spectra.sampled(metric, cloud.box(n_points, source))
        bar.update()
        around, far = profile(metric, data, cloud, reach=reach, n_points=-(-n_points // 8), generator=source)
        bar.update()
        unsure, rough = variance(metric, data, far), creases(metric, data.z)
        bar.update()
        compared, _ = straight_against_geodesic(
            metric, cloud, n_pairs=n_pairs, tol=tol, solver=solver, generator=source, progress=progress
        )
        bar.update()
    dead, weak = spectra.dead_and_weak(data, codes)
    return Findings(
        metric=kind_of(metric),
        n_codes=len(codes),
        dim=d,
        dtype=str(codes.dtype).removeprefix("torch."),
        dead=dead,
        weak=weak,
        unused=spectra.unused(codes),
        on_data=data.summary("at the codes", rows),
        in_box=box.summary("in a box around them"),
        growth=around,
        variance=unsure,
        creases=rough,
        isometry=spectra.isometry(data),
        lines=compared,
        rounding=data.rounding,
    )


def _codes(codes: object) -> Points:
    """Codes (n, d) that a geometry can be checked on, or an error."""
    z = _checks.cloud(codes, "codes").detach()
    if len(z) < 2:
        raise ValueError(f"`codes` holds {len(z)} point: a check compares points; give two or more, better hundreds.")
    if bool((z == z[0]).all()):
        raise ValueError(
            f"`codes` are {len(z)} times the same point: nothing lies between them; look at the encoder that gave them."
        )
    return z


def _look(metric: Metric, codes: Points, source: Generator) -> None:
    """Raise what the metric raises, or is, at all of a few codes: then it is wrong, not some of the data."""
    few = spectra.sampled(metric, codes[_some(len(codes), _LOOKS, source).to(codes.device)])
    if not len(few.z):
        raise few.error or ValueError(
            "the metric's matrix is NaN, infinite or has negative eigenvalues at every code that was looked at: look "
            "at metric.matrix(codes)."
        )


def _some(n: int, most: int, source: Generator) -> torch.Tensor:
    """Indices of all of n things, or of some of them at random, in order."""
    if n <= most:
        return torch.arange(n, device=source.device)
    return torch.randperm(n, generator=source, device=source.device)[:most].sort().values
