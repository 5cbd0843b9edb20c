"""Many points in chunks that fit a memory budget, and on a CPU its cache."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

# Bytes. On a CPU a larger working set costs up to twice as much a point: it leaves the cache, and the allocator takes
# every large block from the system anew.
_CACHE = 12 << 20
_SMALLEST = 32  # points; below, the overhead of an operation outweighs the cache


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30


def chunk_size(footprint: int, device: torch.device, memory: int | None = None, *, peak: int | None = None) -> int:
    """How many points to evaluate at once, at least one.

    Args:
        footprint: Bytes that the evaluation of a point touches; a CPU is given as many points as its cache likes.
        device: Where the points are.
        memory: Budget in bytes. Default: a quarter of what is free.
        peak: Bytes that a point holds at the same time, if these are more: no more points than the budget allows.
    """
    budget = memory if memory is not None else free_memory(device) // 4
    fits = max(1, budget // max(1, footprint, peak or 0))
    if device.type != "cpu":
        return fits
    return min(fits, max(_SMALLEST, _CACHE // max(1, footprint)))


def differentiated(*tensors: Tensor) -> bool:
    """Whether a result made of these tensors has to carry gradients."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def map_points(
    function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...], size: int
) -> tuple[Tensor, ...]:
    """Apply a function of (n, ...) tensors to tensors (*batch, k) of one batch shape; results are (*batch, ...).

    Results carry gradients when one of the tensors requires them. Then the whole is one chunk, for a graph holds all of
    it anyway; otherwise no graph is made, and chunks are of `size` points.
    """
    batch = tensors[0].shape[:-1]
    flat = tuple(t.reshape(-1, t.shape[-1]) for t in tensors)
    if differentiated(*tensors):
        results = function(*flat)
    else:
        with torch.no_grad():
            results = map_chunks(function, flat, size)
    return tuple(r.reshape((*batch, *r.shape[1:])) for r in results)


def map_chunks(
    function: Callable[..., tuple[Tensor, ...]], tensors: tuple[Tensor, ...], size: int
) -> tuple[Tensor, ...]:
    """Apply a function to tensors (n, ...) in chunks of equal size along the first axis; equal to function(*tensors).

    Results are written into place as they come, so that the peak is the result and one chunk.
    """
    n = tensors[0].shape[0]
    if n <= size:
        return function(*tensors)
    size = -(-n // -(-n // size))  # the last chunk is not much smaller than the others
    results: tuple[Tensor, ...] = ()
    for first in range(0, n, size):
        part = function(*(t[first : first + size] for t in tensors))
        if not results:
            results = tuple(p.new_empty(n, *p.shape[1:]) for p in part)
        for i, whole in enumerate(results):
            whole[first : first + size] = part[i]
        del part  # before the next one is made
    return results
