"""What a geodesic solver returns: curves, lengths with errors, and how it ended for each curve."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from pullback.curves import Curve

_SAME = 2e-4  # lengths from several starts that differ by less, relatively, are taken for one: their errors are lost


class Status(Enum):
    """How the solution of one curve ended; the value is the sentence that explains it."""

    CONVERGED = "converged: the length is within its error of that of a geodesic"
    STALLED = (
        "stalled: no step lowers the energy, or the miss, any further, as at a saddle or beyond a conjugate point; try "
        "other starts, float64 or a larger tol"
    )
    MAX_STEPS = (
        "out of steps: the energy was still falling; try other starts (a graph, bends), Relax(max_steps=..., "
        "max_evaluations=...) or a larger tol"
    )
    WALL = (
        "unresolved: the curve crosses a region where the metric jumps, so that its chords and its finely sampled "
        "length disagree; try other starts (a graph, bends), Relax(max_segments=...) or a larger tol"
    )
    NOT_FINITE = "not finite: the decoder returns NaN or infinity on the curve"
    NON_SMOOTH = (
        "converged as far as roughness allows: the curve crosses creases of the decoder (ReLU, max-pool) or steep "
        "walls, so that its length is known to its error only, not to tol"
    )
    LEFT_DOMAIN = "left the domain: the curve ends where the decoder gives no finite values any more"
    RAISED = "raised: the decoder raised an error on this curve"
    INTERRUPTED = "interrupted: the curve was not finished"
    ROUNDING = (
        "converged as far as rounding allows: the features differ too little for their size, so that the length is "
        "known to its error only, not to tol; use float64, or subtract a constant from the decoder's output"
    )

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
            curve here. Starts that lead to curves within 6% of the distance of their ends count as the same. None if
            there was one start.
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
        """Which curves converged, to tol or as far as creases or rounding allow: bool (...)."""
        usable = (Status.CONVERGED, Status.NON_SMOOTH, Status.ROUNDING)
        return torch.stack([self.codes == status.code for status in usable]).any(0)

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

    def report(self) -> str:
        """A text of several lines for people: convergence, lengths and errors, cost, failures with cures, other minima.

        Example:
            >>> import pullback as pb
            >>> path = pb.geodesic(pb.Pullback(torch.nn.Identity()), torch.zeros(3, 2), torch.tensor([3.0, 4.0]))
            >>> print(path.report())
            3 geodesics, d = 2: 3 converged
            length: median 5, 95% below 5, from 5 to 5
            ...
        """
        n, good = self.codes.numel(), self.converged.reshape(-1)
        count = f"{n} geodesic" + ("" if n == 1 else "s")
        lines = [f"{count}, d = {self.curve.nodes.shape[-1]}: {int(good.sum())} converged"]
        length, error = (values.reshape(-1)[good].double() for values in (self.length, self.length_error))
        if len(length):
            lines.append(f"length: {_spread(length, 'g')}")
            share = (error / length).nan_to_num(0.0)  # at rest
            lines.append(f"length error, relative: {_spread(share, 'e')}")
        if n:
            many = "" if n == 1 else ", as many as the curve that needs most"
            lines.append(f"segments: {self.curve.n_segments}{many}")
            for name in ("iterations", "evaluations"):
                spent = getattr(self, name).double()
                each = f"{float(spent.mean()):,.0f} in the mean, {int(spent.max()):,} at most"
                lines.append(f"{name}: {int(spent.sum()):,}" if n == 1 else f"{name}: {each}")
        for status in list(Status)[1:]:
            which = self.codes == status.code
            if which.any():
                lines.append(f"{int(which.sum())} {status.value}{_listed(which)}")
        lines += self._other_minima()
        return "\n".join(lines)

    def _other_minima(self) -> list[str]:
        """What the lengths from several starts say, in one line; none if there was one start."""
        if self.candidates is None:
            return []
        known = self.candidates.double()
        gap = known.nan_to_num(-torch.inf).amax(-1) / known.nan_to_num(torch.inf).amin(-1) - 1
        apart = gap > (2 * self.length_error / self.length).double().clamp_min(_SAME)
        n_starts, found = known.shape[-1], torch.isfinite(known).sum(-1)
        if not (found > 1).any():
            return [f"starts: {n_starts}, of which {int(found.max()) if found.numel() else 0} led to a geodesic"]
        apart &= found > 1
        if not apart.any():
            return [f"starts: {n_starts}, all of the same length within the errors"]
        largest = 100 * float(gap[apart].max())
        text = f"for {int(apart.sum())} of {apart.numel()} pairs the minimum is not unique"
        if not apart.ndim:
            return [f"starts: {n_starts}; the minimum is not unique: another is up to {largest:.2g}% longer"]
        return [f"starts: {n_starts}; {text}, others are up to {largest:.2g}% longer{_listed(apart)}"]

    def raise_for_status(self) -> None:
        """Raise :class:`ConvergenceError` unless every curve converged."""
        if not self.converged.all():
            raise ConvergenceError(self.message)

    def reshape(self, batch: torch.Size) -> Solution:
        """The same curves in another batch shape."""
        nodes = self.curve.nodes
        tensors = (self.length, self.length_error, self.energy, self.codes, self.iterations, self.evaluations)
        candidates = None if self.candidates is None else self.candidates.reshape(*batch, self.candidates.shape[-1])
        curve = Curve(nodes.reshape(*batch, *nodes.shape[-2:]))
        return Solution(curve, *(t.reshape(batch) for t in tensors), candidates=candidates)

    def __getitem__(self, index: object) -> Solution:
        """The curves at an index of the batch."""
        tensors = (self.length, self.length_error, self.energy, self.codes, self.iterations, self.evaluations)
        candidates = None if self.candidates is None else self.candidates[index]  # pyright: ignore[reportArgumentType]
        tensors = tuple(t[index] for t in tensors)  # pyright: ignore[reportArgumentType]
        return Solution(self.curve[index], *tensors, candidates=candidates)

    def __repr__(self) -> str:
        return f"Solution({self.curve!r}: {self.message})"


def _listed(which: Tensor) -> str:
    """The pairs at which a mask holds, in words; nothing for a single pair."""
    if not which.ndim:
        return ""
    pairs = which.reshape(-1).nonzero().reshape(-1).tolist()
    return f" (pairs {', '.join(map(str, pairs[:10]))}{', ...' if len(pairs) > 10 else ''})"


def _spread(values: Tensor, kind: str) -> str:
    """Quantiles in words; one value as it is."""
    form = ".1e" if kind == "e" else ".4g"
    if len(values) == 1:
        return format(float(values[0]), form)
    shares = torch.tensor([0.5, 0.95, 0, 1], dtype=values.dtype, device=values.device)
    median, most, least, largest = (format(value, form) for value in values.quantile(shares).tolist())
    return f"median {median}, 95% below {most}, from {least} to {largest}"
