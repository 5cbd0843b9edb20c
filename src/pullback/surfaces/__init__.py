"""Geometry that is known in closed form: truth for tests, tutorials and other people's solvers.

Decoders of surfaces, to be given to :class:`~pullback.Pullback`, and two metrics of hyperbolic space, which are given
without a decoder. Each has ``matrix(z)``, G in closed form, and ``curvature(z)``, the Gaussian curvature R_1212 / det G
(positive on a sphere); in more than two dimensions the sectional curvature that all planes share. Where it is known,
``distance(a, b)`` is the length of the shortest curve in the latent space: on a cylinder the angle is not taken modulo
2 pi. All cost one evaluation, and work for a batch of points (..., d).
"""

from pullback.surfaces.curved import Catenoid, Helicoid, Paraboloid, Saddle, Sphere, Torus
from pullback.surfaces.flat import Cylinder, DisguisedPlane, Plane
from pullback.surfaces.hyperbolic import HyperbolicHalfPlane, PoincareBall

__all__ = [
    "Catenoid",
    "Cylinder",
    "DisguisedPlane",
    "Helicoid",
    "HyperbolicHalfPlane",
    "Paraboloid",
    "Plane",
    "PoincareBall",
    "Saddle",
    "Sphere",
    "Torus",
]
