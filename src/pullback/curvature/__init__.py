r"""How curved a latent space is: inside (scalar, Ricci, sectional, Riemann), and as a surface in feature space.

With the sign and index conventions of ``docs/conventions.md``: positive on a sphere. Curvature is in units of one over
a squared length, lengths being those that the metric measures: in squares of one over the decoder's output.

Two routes lead to it, and the metric decides. Behind an immersed metric (:class:`~pullback.Pullback` of a decoder,
``Gaussian``, ``Ensemble``, ``FisherRao`` of flat families, sums of these) stands a map f into Euclidean space. Gauss'
equation then gives everything from second derivatives of f, by the second fundamental form II(u, v), the part of
f''(u, v) that is normal to the surface:

.. math:: R_{ijkl} = \langle II_{ik}, II_{jl} \rangle - \langle II_{il}, II_{jk} \rangle .

Any other metric is differentiated twice through its ``matrix``. A decoder with creases (ReLU) has no curvature at a
point, and is refused; ``scale`` takes finite differences in place of derivatives. Points where the metric is singular
or the decoder not finite get NaN, and a :class:`~pullback.CurvatureWarning` says how many they are, which and why.
Results carry gradients when an argument requires them.
"""

from pullback.curvature.extrinsic import mean_curvature, second_fundamental_form
from pullback.curvature.intrinsic import Estimate, christoffel, gaussian, ricci, riemann, scalar, sectional, total

__all__ = [
    "Estimate",
    "christoffel",
    "gaussian",
    "mean_curvature",
    "ricci",
    "riemann",
    "scalar",
    "second_fundamental_form",
    "sectional",
    "total",
]
