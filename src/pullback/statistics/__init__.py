"""Statistics in the metric: means, clusters, densities, walks, principal geodesics."""

from pullback.statistics.clustering import KMeans, KMedoids
from pullback.statistics.densities import kernel_bandwidth, kernel_density
from pullback.statistics.land import LAND
from pullback.statistics.means import frechet_mean, frechet_variance, medoid
from pullback.statistics.principal import PrincipalGeodesics, principal_geodesics
from pullback.statistics.uniform import Sample, sample_uniform
from pullback.statistics.walks import Walk, brownian_motion, random_walk

__all__ = [
    "LAND",
    "KMeans",
    "KMedoids",
    "PrincipalGeodesics",
    "Sample",
    "Walk",
    "brownian_motion",
    "frechet_mean",
    "frechet_variance",
    "kernel_bandwidth",
    "kernel_density",
    "medoid",
    "principal_geodesics",
    "random_walk",
    "sample_uniform",
]
