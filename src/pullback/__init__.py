"""The geometry of latent spaces: pullback metrics of trained decoders, geodesics, distances, magnification maps.

    metric = pullback.Pullback(decoder)
    path = pullback.geodesic(metric, z_start, z_end)

Names are imported when they are first used, so that ``import pullback`` and ``pullback --help`` are quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Curve": "curves",
    "energy": "curves",
    "length": "curves",
    "Gaussian": "decoders",
    "ConvergenceError": "geodesics",
    "GeodesicSolver": "geodesics",
    "Relax": "geodesics",
    "Solution": "geodesics",
    "Status": "geodesics",
    "distance": "geodesics",
    "geodesic": "geodesics",
    "Metric": "metrics",
    "Pullback": "metrics",
    "DerivativeWarning": "_checks",
    "GeodesicWarning": "_checks",
    "PullbackWarning": "_checks",
    "RankWarning": "_checks",
}
_MODULES = ("datasets", "io", "models", "plot", "surfaces")

__all__ = [*_HOMES, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from pullback import datasets as datasets
    from pullback import io as io
    from pullback import models as models
    from pullback import plot as plot
    from pullback import surfaces as surfaces
    from pullback._checks import DerivativeWarning as DerivativeWarning
    from pullback._checks import GeodesicWarning as GeodesicWarning
    from pullback._checks import PullbackWarning as PullbackWarning
    from pullback._checks import RankWarning as RankWarning
    from pullback.curves import Curve as Curve
    from pullback.curves import energy as energy
    from pullback.curves import length as length
    from pullback.decoders import Gaussian as Gaussian
    from pullback.geodesics import ConvergenceError as ConvergenceError
    from pullback.geodesics import GeodesicSolver as GeodesicSolver
    from pullback.geodesics import Relax as Relax
    from pullback.geodesics import Solution as Solution
    from pullback.geodesics import Status as Status
    from pullback.geodesics import distance as distance
    from pullback.geodesics import geodesic as geodesic
    from pullback.metrics import Metric as Metric
    from pullback.metrics import Pullback as Pullback


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(importlib.import_module(f"pullback.{_HOMES[name]}"), name)
    elif name in _MODULES:
        found = importlib.import_module(f"pullback.{name}")
    else:
        raise AttributeError(f"module 'pullback' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
