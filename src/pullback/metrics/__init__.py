"""Metrics on a latent space: what a decoder pulls back, and what is given in other ways."""

from pullback.metrics.contract import Metric, Scaled, Sum
from pullback.metrics.fields import Conformal, LocalVariance, MatrixField
from pullback.metrics.fisher import FisherRao
from pullback.metrics.pullback import Pullback
from pullback.metrics.tabulated import TableError, Tabulated

__all__ = [
    "Conformal", "FisherRao", "LocalVariance", "MatrixField", "Metric", "Pullback", "Scaled", "Sum", "TableError",
    "Tabulated",
]  # fmt: skip
