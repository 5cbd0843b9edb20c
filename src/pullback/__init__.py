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
    "constant_speed": "curves",
    "energy": "curves",
    "length": "curves",
    "Ensemble": "decoders",
    "Gaussian": "decoders",
    "Collocate": "geodesics",
    "ConvergenceError": "geodesics",
    "Fallback": "geodesics",
    "GeodesicSolver": "geodesics",
    "Georce": "geodesics",
    "Newton": "geodesics",
    "Relax": "geodesics",
    "Shoot": "geodesics",
    "Solution": "geodesics",
    "Status": "geodesics",
    "Trajectory": "geodesics",
    "Verification": "geodesics",
    "distance": "geodesics",
    "exp": "geodesics",
    "geodesic": "geodesics",
    "geodesic_ode": "geodesics",
    "load": "geodesics",
    "log": "geodesics",
    "save": "geodesics",
    "transport": "geodesics",
    "verify": "geodesics",
    "check_geometry": "diagnostics",
    "distance_matrix": "distances",
    "RayExecutor": "executors",
    "Graph": "graphs",
    "Landmarks": "graphs",
    "grid_graph": "graphs",
    "knn_graph": "graphs",
    "Conformal": "metrics",
    "FisherRao": "metrics",
    "LocalVariance": "metrics",
    "MatrixField": "metrics",
    "Metric": "metrics",
    "Pullback": "metrics",
    "Tabulated": "metrics",
    "KMeans": "statistics",
    "KMedoids": "statistics",
    "LAND": "statistics",
    "PrincipalGeodesics": "statistics",
    "Sample": "statistics",
    "Walk": "statistics",
    "brownian_motion": "statistics",
    "frechet_mean": "statistics",
    "frechet_variance": "statistics",
    "kernel_bandwidth": "statistics",
    "kernel_density": "statistics",
    "medoid": "statistics",
    "principal_geodesics": "statistics",
    "random_walk": "statistics",
    "sample_uniform": "statistics",
    "CurvatureWarning": "_checks",
    "DerivativeWarning": "_checks",
    "GeodesicWarning": "_checks",
    "GraphWarning": "_checks",
    "PullbackWarning": "_checks",
    "RankWarning": "_checks",
    "StatisticsWarning": "_checks",
}
_MODULES = ("curvature", "datasets", "interop", "io", "models", "plot", "surfaces")

__all__ = [*_HOMES, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from pullback import curvature as curvature
    from pullback import datasets as datasets
    from pullback import interop as interop
    from pullback import io as io
    from pullback import models as models
    from pullback import plot as plot
    from pullback import surfaces as surfaces
    from pullback._checks import CurvatureWarning as CurvatureWarning
    from pullback._checks import DerivativeWarning as DerivativeWarning
    from pullback._checks import GeodesicWarning as GeodesicWarning
    from pullback._checks import GraphWarning as GraphWarning
    from pullback._checks import PullbackWarning as PullbackWarning
    from pullback._checks import RankWarning as RankWarning
    from pullback._checks import StatisticsWarning as StatisticsWarning
    from pullback.curves import Curve as Curve
    from pullback.curves import constant_speed as constant_speed
    from pullback.curves import energy as energy
    from pullback.curves import length as length
    from pullback.decoders import Ensemble as Ensemble
    from pullback.decoders import Gaussian as Gaussian
    from pullback.diagnostics import check_geometry as check_geometry
    from pullback.distances import distance_matrix as distance_matrix
    from pullback.executors import RayExecutor as RayExecutor
    from pullback.geodesics import Collocate as Collocate
    from pullback.geodesics import ConvergenceError as ConvergenceError
    from pullback.geodesics import Fallback as Fallback
    from pullback.geodesics import GeodesicSolver as GeodesicSolver
    from pullback.geodesics import Georce as Georce
    from pullback.geodesics import Newton as Newton
    from pullback.geodesics import Relax as Relax
    from pullback.geodesics import Shoot as Shoot
    from pullback.geodesics import Solution as Solution
    from pullback.geodesics import Status as Status
    from pullback.geodesics import Trajectory as Trajectory
    from pullback.geodesics import Verification as Verification
    from pullback.geodesics import distance as distance
    from pullback.geodesics import exp as exp
    from pullback.geodesics import geodesic as geodesic
    from pullback.geodesics import geodesic_ode as geodesic_ode
    from pullback.geodesics import load as load
    from pullback.geodesics import log as log
    from pullback.geodesics import save as save
    from pullback.geodesics import transport as transport
    from pullback.geodesics import verify as verify
    from pullback.graphs import Graph as Graph
    from pullback.graphs import Landmarks as Landmarks
    from pullback.graphs import grid_graph as grid_graph
    from pullback.graphs import knn_graph as knn_graph
    from pullback.metrics import Conformal as Conformal
    from pullback.metrics import FisherRao as FisherRao
    from pullback.metrics import LocalVariance as LocalVariance
    from pullback.metrics import MatrixField as MatrixField
    from pullback.metrics import Metric as Metric
    from pullback.metrics import Pullback as Pullback
    from pullback.metrics import Tabulated as Tabulated
    from pullback.statistics import LAND as LAND
    from pullback.statistics import KMeans as KMeans
    from pullback.statistics import KMedoids as KMedoids
    from pullback.statistics import PrincipalGeodesics as PrincipalGeodesics
    from pullback.statistics import Sample as Sample
    from pullback.statistics import Walk as Walk
    from pullback.statistics import brownian_motion as brownian_motion
    from pullback.statistics import frechet_mean as frechet_mean
    from pullback.statistics import frechet_variance as frechet_variance
    from pullback.statistics import kernel_bandwidth as kernel_bandwidth
    from pullback.statistics import kernel_density as kernel_density
    from pullback.statistics import medoid as medoid
    from pullback.statistics import principal_geodesics as principal_geodesics
    from pullback.statistics import random_walk as random_walk
    from pullback.statistics import sample_uniform as sample_uniform


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
