"""Samples, their labels, and the shape that they had."""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """Samples with the shape they had before they were flattened.

    Attributes:
        samples: x (n, D), float32; images are scaled to [0, 1].
        labels: (n,) int64, or None.
        sample_shape: Shape of one sample; its product is D.
        name: What to call it in records.

    Raises:
        ValueError: Shapes or dtypes are others than these, or there is no sample.
    """

    samples: Float[Tensor, "n D"]
    labels: Int[Tensor, " n"] | None
    sample_shape: tuple[int, ...]
    name: str

    def __post_init__(self) -> None:
        x, labels = self.samples, self.labels
        if x.ndim != 2 or x.dtype != torch.float32 or x.numel() == 0:
            raise ValueError(
                f"`samples` has shape {tuple(x.shape)} and dtype {x.dtype}: wanted (n, D), float32, n > 0; "
                "use samples.flatten(1).float()"
            )
        if labels is not None and (labels.shape != x.shape[:1] or labels.dtype != torch.int64):
            raise ValueError(
                f"`labels` has shape {tuple(labels.shape)} and dtype {labels.dtype}: wanted ({len(x)},), int64"
            )
        if math.prod(self.sample_shape) != x.shape[1]:
            raise ValueError(f"`sample_shape` is {self.sample_shape}: wanted a shape of {x.shape[1]} numbers")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """The samples and labels at some rows: an index or boolean tensor (m,) or a slice."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, samples=self.samples[rows], labels=labels)
