"""What a geodesic solver returns: curves, lengths with errors, and how it ended for each curve."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from torch import Tensor

from pullback.curves import Curve


class Status(Enum):
    """How the solution of one curve ended; the value is the sentence that explains it."""

    CONVERGED = "converged: the length is within its error of that of a geodesic"
    STALLED = "stalled: no step lowers the energy any further; try float64 or a larger tol"
    MAX_STEPS = "out of steps: the energy was still falling; try Relax(max_steps=...) or a larger tol"
    WALL = (
        "unresolved: the curve crosses a region where the metric jumps, so that its chords and its finely sampled "
        "length disagree; try Relax(max_segments=...), another init or a larger tol"
    )
    NOT_FINITE = "not finite: the decoder returns NaN or infinity on the curve"
    NON_SMOOTH = (
        "converged as far as creases allow: the decoder is not smooth (ReLU, max-pool), so that the length is known to "
        "its error only, not to tol"
    )
    LEFT_DOMAIN = "left the domain: the curve ends where the decoder gives no finite values any more"
    RAISED = "raised: the decoder raised an error on this curve, and on no other"
    INTERRUPTED = "interrupted: the curve was not finished"

    @property
    def code(self) -> int:
        """The place in the order of definition, as it stands in tensors of codes."""
        return list(Status).index(self)


class ConvergenceError(RuntimeError):
    """Raised by :meth:`Solution.raise_for_status` when some curve did not converge."""


@dataclass(frozen=True)
class Solution:
    """Geodesics and what is known about them, one entry a curve; tensors have the batch shape (...) of the pairs.

    Attributes:
        curve: The curves, at constant Riemannian speed where they converged.
        length: Length of each curve in units of the data space; NaN where it did not converge.
        length_error: Estimated bound of abs(length - length of the geodesic), right for 19 curves of 20 on the shipped
            model; NaN where it did not converge.
        energy: 1/2 int abs(c')^2 dt of each curve; NaN where it did not converge.
        codes: Position of each curve's :class:`Status` in that enumeration.
        iterations: Steps of the solver.
        evaluations: Decoder evaluations: 1 a point, 1 more a tangent, 2 more a gradient. From several starts: of all.
        candidates: Lengths (..., K) of what was found from each of K starts, NaN where nothing was; the shortest is the
            curve here. None if there was one start.
    """

    curve: Curve
    length: Tensor
    length_error: Tensor
    energy: Tensor
    codes: Tensor
    iterations: Tensor
    evaluations: Tensor
    candidates: Tensor | None = None

    @property
    def status(self) -> Status | np.ndarray:
        """The status of a single pair, or an array of them (object dtype) of the batch shape."""
        return np.array(list(Status), dtype=object)[self.codes.cpu().numpy()]

    @property
    def converged(self) -> Tensor:
        """Which curves converged, smoothly or as far as creases allow: bool (...)."""
        return (self.codes == Status.CONVERGED.code) | (self.codes == Status.NON_SMOOTH.code)

    @property
    def message(self) -> str:
        """How the whole went, in words: which curves failed, why, and what to try."""
        if not self.codes.ndim:
            return list(Status)[int(self.codes)].value
        n = self.codes.numel()
        lines = [f"{int(self.converged.sum())} of {n} geodesics converged"]
        for status in list(Status)[1:]:
            pairs = (self.codes.reshape(-1) == status.code).nonzero().reshape(-1).tolist()
            if pairs:
                shown = ", ".join(map(str, pairs[:10])) + (", ..." if len(pairs) > 10 else "")
                lines.append(f"{len(pairs)} {status.value} (pairs {shown})")
        return "; ".join(lines)

    def raise_for_status(self) -> None:
        """Raise :class:`ConvergenceError` unless every curve converged."""
        if not self.converged.all():
            raise ConvergenceError(self.message)

    def __getitem__(self, index: object) -> Solution:
        """The curves at an index of the batch."""
        tensors = (self.length, self.length_error, self.energy, self.codes, self.iterations, self.evaluations)
        candidates = None if self.candidates is None else self.candidates[index]  # pyright: ignore[reportArgumentType]
        return Solution(self.curve[index], *(t[index] for t in tensors), candidates)  # pyright: ignore[reportArgumentType]

    def __repr__(self) -> str:
        return f"Solution({self.curve!r}: {self.message})"
