"""The geodesic equation z'' = -Gamma(z', z') as a first-order system, for any integrator."""

from __future__ import annotations

from typing import Any, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from pullback import _checks
from pullback.metrics import Metric


class Equation(Protocol):
    """A right-hand side (t, y) -> dy/dt of tensors or of arrays."""

    @overload
    def __call__(self, t: float, y: Tensor) -> Tensor: ...

    @overload
    def __call__(self, t: float, y: np.ndarray) -> np.ndarray: ...


def geodesic_ode(metric: Metric) -> Equation:
    r"""The right-hand side of the geodesic equation, for an integrator of your own.

    .. math:: \frac{d}{dt} (z, v) = \big(v, \, -\Gamma_z(v, v)\big), \qquad
        \Gamma(v, v) = G^{-1} J^\top f''(v, v) \text{ for a pullback metric}

    Along exact solutions :math:`|v|_G` is constant. :func:`exp` integrates it for many points at once.

    Args:
        metric: The metric.

    Returns:
        A function (t, y) -> dy/dt of states y (..., 2 d), the point and below it the velocity: tensors, or NumPy
        arrays as scipy passes them. NaN where the metric is singular or not finite.

    Cost:
        :meth:`Metric.christoffel` a state: d + 8 decoder evaluations.

    Example:
        >>> import pullback as pb
        >>> plane = geodesic_ode(pb.Pullback(torch.nn.Identity()))
        >>> plane(0.0, torch.tensor([0.0, 0.0, 3.0, 4.0]))
        tensor([3., 4., -0., -0.])
    """
    if not isinstance(metric, Metric):
        raise _checks.not_a_metric(metric)

    def equation(t: float, y: Any) -> Any:
        if isinstance(y, np.ndarray):
            return equation(t, torch.from_numpy(np.array(y))).detach().numpy()  # a copy: theirs may be read-only
        z, v = _checks.halves(y)
        return torch.cat((v, -metric.christoffel(z, v, v)), -1)

    return equation
