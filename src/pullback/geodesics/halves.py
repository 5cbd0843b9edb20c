"""Work on many pairs at once, some of which make the decoder raise an error: these are found by halving."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

_BUGS = (TypeError, AttributeError, NameError, IndexError)  # to be seen, not to be worked around

Result = TypeVar("Result")


def by_halves(
    work: Callable[[Tensor], Result], rows: Tensor
) -> tuple[list[Tensor], list[Result | None], Exception | None]:
    """Work on rows (n,); where that raises an error, on each half of them, down to the rows that raise alone.

    Returns the rows of each part, what came of it (None for a row that raises), and the first error. Cost: for each row
    that raises, up to log n times the work.
    """
    try:
        return [rows], [work(rows)], None
    except (MemoryError, torch.OutOfMemoryError, Warning, *_BUGS):
        raise
    except Exception as error:
        reason = error
    if len(rows) == 1:
        return [rows], [None], reason
    where, results = [], []
    for half in rows.split((len(rows) + 1) // 2):
        parts, found, _ = by_halves(work, half)
        where += parts
        results += found
    return where, results, reason
