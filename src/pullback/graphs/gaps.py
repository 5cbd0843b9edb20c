"""Points between codes, where a graph over these alone has to go around."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.graphs.edges import nearest

_CANDIDATES = 20  # for each point that is kept


def between(points: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Points (n, d) on straight lines between random ones of (m, d), far from these and from each other.

    Of many candidates always the one farthest from all points, by latent distance.
    """
    m, count, kind = len(points), _CANDIDATES * n, {"dtype": points.dtype, "device": points.device}
    where = None if generator is None else generator.device
    ends = torch.randint(m, (2, count), generator=generator, device=where).to(points.device)
    t = torch.rand(count, 1, generator=generator, dtype=points.dtype, device=where).to(points.device)
    candidates = (1 - t) * points[ends[0]] + t * points[ends[1]]
    closest = points[torch.as_tensor(nearest(points, candidates, 1)[:, 0], device=points.device)]
    gap = (candidates - closest).square().sum(1)
    chosen = torch.empty(n, points.shape[1], **kind)
    for k in range(n):
        chosen[k] = candidates[gap.argmax()]
        gap = torch.minimum(gap, (candidates - chosen[k]).square().sum(1))
    return chosen
