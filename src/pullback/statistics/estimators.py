"""What the estimators share: a door for arrays and tensors, randomness, clones that share the metric."""

from __future__ import annotations

import copy
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from torch import Tensor, nn

from pullback import _checks
from pullback.metrics import Metric
from pullback.types import Points


class Estimator(BaseEstimator):
    """Base of the estimators: the metric is a parameter, data are arrays or tensors (n, d).

    Arrays become tensors of the metric's dtype on its device; results come back as what the data were. Clones share the
    metric, which no estimator changes: a decoder is not copied for each candidate of a grid search.
    """

    metric: Any

    def __sklearn_clone__(self) -> Self:
        shared = (nn.Module, Tensor)
        given = self.get_params(deep=False)
        twin = type(self)(**{k: v if isinstance(v, shared) else clone(v, safe=False) for k, v in given.items()})
        for name in ("_metadata_request", "_sklearn_output_config"):  # settings of scikit-learn's own
            if hasattr(self, name):
                setattr(twin, name, copy.deepcopy(getattr(self, name)))
        return twin

    def _codes(self, X: Any, *, reset: bool = False, least: int = 1) -> Points:
        """Data as finite points (n, d) of the metric's dtype on its device; `reset` where the estimator is fitted."""
        precomputed = self.__sklearn_tags__().input_tags.pairwise
        if not (precomputed or isinstance(self.metric, Metric)):
            raise _checks.not_a_metric(self.metric)
        array: Any = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
        array = validate_data(self, array, reset=reset, dtype=[np.float64, np.float32], ensure_min_samples=least)
        dtype, device = (None, None) if precomputed else kind_of(self.metric)
        if isinstance(X, Tensor) and X.dtype == torch.from_numpy(array[:0]).dtype:
            codes = X.detach()
        else:
            codes = torch.from_numpy(np.array(array))  # a copy: arrays may be read-only
        return codes.to(device=device or codes.device, dtype=dtype or codes.dtype)


def generator_from(random_state: Any) -> torch.Generator:
    """A generator on the CPU from None (numpy's global state), an integer, a RandomState or a generator of torch."""
    if isinstance(random_state, torch.Generator):
        return random_state
    seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    return torch.Generator("cpu").manual_seed(seed)


def kind_of(metric: Metric) -> tuple[torch.dtype | None, torch.device | None]:
    """Dtype and device that points for a metric have: those of its weights or tables; None where it has none."""
    for tensor in (*metric.parameters(), *metric.buffers()):
        if tensor.dtype in (torch.float32, torch.float64):
            return tensor.dtype, tensor.device
    return None, None


def like(result: Tensor, X: Any) -> Any:
    """A result as what the data are: a tensor on their device, or an array; numbers in their floating-point dtype."""
    floating = result.is_floating_point()
    if isinstance(X, Tensor):
        dtype = X.dtype if floating and X.is_floating_point() else result.dtype
        return result.detach().to(device=X.device, dtype=dtype)
    array = result.detach().cpu().numpy()
    given = getattr(X, "dtype", None)
    return array.astype(given) if floating and given in (np.float32, np.float64) else array
