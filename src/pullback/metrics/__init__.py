"""Metrics on a latent space: what a decoder pulls back, and what is given in other ways."""

from pullback.metrics.contract import Metric
from pullback.metrics.pullback import Pullback

__all__ = ["Metric", "Pullback"]
