"""Draws the pictures of docs/accuracy.md into docs/_static, and logs what it and the table of solvers state.

OMP_NUM_THREADS=1 python tools/figures_accuracy.py                # all: about 15 minutes
OMP_NUM_THREADS=1 python tools/figures_accuracy.py orders errors  # some, see --help
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import pullback as pb

STATIC = Path(__file__).parents[1] / "docs" / "_static"
F64 = torch.float64
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
PAIRS = 100
SLOW = 5  # pairs for slow solvers

log = logging.getLogger("figures_accuracy")


class Problem(NamedTuple):
    """A metric and pairs of points; the true lengths, where they are known in closed form."""

    name: str
    decoder: nn.Module
    start: Tensor
    end: Tensor
    exact: Callable[[Tensor, Tensor], Tensor] | None = None

    def solve(self, tol: float, dtype: torch.dtype = F64, **settings: object) -> pb.Solution:
        """All pairs, in a precision."""
        metric = pb.Pullback(self.decoder.to(dtype))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pb.GeodesicWarning)
            path = pb.geodesic(metric, self.start.to(dtype), self.end.to(dtype), tol=tol, **settings)  # pyright: ignore[reportArgumentType]
        self.decoder.to(F64)
        return path

    def truth(self, path: pb.Solution) -> Tensor:
        """The lengths of the geodesics that curves approximate."""
        if self.exact is not None:
            return self.exact(self.start, self.end)
        return self.solve(1e-8, init=pb.Curve(_pinned(path.curve.nodes.double(), self.start, self.end))).length


def _pinned(nodes: Tensor, start: Tensor, end: Tensor) -> Tensor:
    nodes = nodes.clone()
    nodes[:, 0], nodes[:, -1] = start, end
    return nodes


def mlp(d: int, activation: type[nn.Module], width: int = 64, n_features: int = 100, gain: float = 1.5) -> nn.Module:
    """A random network of one hidden layer, always the same."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(d, width), activation(), nn.Linear(width, n_features)).double()
    for weight in net.parameters():
        fan = weight.shape[-1] if weight.ndim > 1 else 1
        weight.data = gain * torch.randn(weight.shape, generator=generator, dtype=F64) / math.sqrt(fan)
    return net.requires_grad_(False)


def sphere(n: int = PAIRS) -> Problem:
    generator = torch.Generator().manual_seed(1)
    start, end = (0.5 * torch.randn(n, 2, generator=generator, dtype=F64) for _ in range(2))
    surface = pb.surfaces.Sphere()
    return Problem("sphere", surface, start, end, surface.distance)


def tanh(n: int = PAIRS) -> Problem:
    generator = torch.Generator().manual_seed(2)
    start, end = (torch.randn(n, 8, generator=generator, dtype=F64) for _ in range(2))
    return Problem("tanh network, d = 8", mlp(8, nn.Tanh), start, end)


def shipped(n: int = PAIRS) -> Problem:
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(1))[:400]
    return Problem("shipped model", model.decoder, model.codes[chosen[:n]], model.codes[chosen[200 : 200 + n]])


def orders() -> None:
    """Errors of the length of straight latent lines by their number of segments."""
    generator = torch.Generator().manual_seed(3)
    start, end = (torch.randn(50, 2, generator=generator, dtype=F64) for _ in range(2))
    curves = pb.Curve.straight(start, end)
    counts = [8 * 2**k for k in range(8)]
    _, ax = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for label, activation, odd, marker in (
        ("tanh, plain chords", nn.Tanh, 1, "o"), ("tanh, quadratic elements", nn.Tanh, 0, "s"),
        ("ReLU, quadratic elements", nn.ReLU, 0, "^"),
    ):  # fmt: skip
        metric = pb.Pullback(mlp(2, activation))
        truth = pb.length(metric, curves, n_segments=2**15)
        errors = [(pb.length(metric, curves, n_segments=n + odd) / truth - 1).abs().mean() for n in counts]
        (line,) = ax.loglog(counts, errors, marker=marker, markersize=4, label=label)
        slope = math.log2(float(errors[3] / errors[6])) / 3
        ax.annotate(f"order {slope:.1f}", (counts[-1], float(errors[-1])), (6, -3), textcoords="offset points",
                    color=line.get_color())  # fmt: skip
        log.info("order of %s: %.2f", label, slope)
    ax.set(xlabel="segments", ylabel="relative error of the length", xlim=(7, 4000))
    ax.legend(loc="lower left")
    _save("accuracy_orders.png")


def errors() -> None:
    """Reported against true errors, at two tolerances."""
    _, axes = plt.subplots(1, 3, figsize=(9, 3.3), sharex=True, sharey=True, layout="constrained")
    for ax, problem in zip(axes, (sphere(), tanh(), shipped()), strict=True):
        for tol, color in ((1e-2, "C1"), (1e-4, "C0")):
            path = problem.solve(tol)
            true = ((path.length - problem.truth(path)).abs() / path.length).clamp_min(1e-9)
            reported = path.length_error / path.length
            inside = float((true <= reported)[path.converged].double().mean())
            ratio = float((reported / true)[path.converged].median())
            log.info(
                f"{problem.name}, tol {tol:.0e}: inside {inside:.0%}, reported over true {ratio:.0f} in the median"
            )
            label = f"tol = {tol:g}: {inside:.0%} above"
            ax.scatter(true, reported, s=9, color=color, alpha=0.6, linewidths=0, label=label)
            ax.axhline(tol, color=color, linewidth=0.6, linestyle=":")
        ax.plot([1e-9, 1e-1], [1e-9, 1e-1], color="0.4", linewidth=0.8)
        ax.annotate("reported = true", (2e-8, 2.6e-8), color="0.4", fontsize=7, rotation=45, rotation_mode="anchor")
        ax.set(xscale="log", yscale="log", xlim=(5e-10, 3e-2), ylim=(5e-9, 3e-2))
        ax.set(title=problem.name, xlabel="true error")
        ax.legend(loc="lower right", handletextpad=0.1, fontsize=8)
    axes[0].set_ylabel("reported error")
    _save("accuracy_errors.png")


def valleys() -> None:
    """How many of 2,000 errors hold when curves are followed down from where they were left; what `verify` says."""
    model = pb.models.pretrained("mnist012")
    chosen = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(4))[:4000]
    problem = Problem("shipped model", model.decoder, *model.codes[chosen].chunk(2))
    for tol in (1e-3, 1e-4):
        path = problem.solve(tol)
        on = problem.solve(1e-6, init=path.curve)
        over = (path.length - on.length).abs() / (path.length_error + on.length_error)
        lost = ((over > 1) & path.converged & on.converged).nonzero().reshape(-1)
        told = pb.verify(pb.Pullback(problem.decoder), path[lost])
        log.info(
            f"tol {tol:.0e}: {len(lost)} of {len(over)} errors do not hold, by factors of "
            f"{[round(x, 1) for x in over[lost].sort().values.tolist()]}; lengths off by "
            f"{float((path.length / on.length - 1)[lost].abs().median()):.1e} in the median of these; verify confirms "
            f"{int(told.within.sum())} of them"
        )


def precision() -> None:
    """Errors in float32 and in float64 by tolerance."""
    _, axes = plt.subplots(1, 2, figsize=(7, 3.3), sharex=True, sharey=True, layout="constrained")
    tols = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7]
    for ax, problem in zip(axes, (sphere(40), shipped(40)), strict=True):
        truth = problem.truth(problem.solve(1e-4))
        for dtype, color, label in ((F64, "C0", "float64"), (torch.float32, "C3", "float32")):
            median, worst = [], []
            for tol in tols:
                path = problem.solve(tol, dtype)
                off = ((path.length.double() - truth).abs() / truth)[path.converged]
                off = off[off < 2e-3] if tol < 1e-3 else off  # the others found another minimum
                median.append(float(off.median()))
                worst.append(float(off.quantile(0.95)))
                share = float(path.converged.double().mean())
                log.info(f"{problem.name}, {label}, tol {tol:.0e}: median {median[-1]:.1e}, 95% {worst[-1]:.1e}, "
                      f"converged {100 * share:.0f}%, evaluations {float(path.evaluations.double().mean()):.0f}, "
                      f"statuses {sorted({status.name for status in path.status})}")  # fmt: skip
            ax.loglog(tols, worst, marker="o", markersize=4, color=color, label=f"{label}, 95% of pairs below")
            ax.loglog(tols, median, marker="o", markersize=3, ls="--", linewidth=0.8, color=color, label="median")
        ax.loglog(tols, tols, color="0.5", linewidth=0.8)
        ax.set(title=problem.name, xlabel="tol")
    axes[0].set_ylabel("true relative error of the length")
    axes[0].legend(loc="upper left", fontsize=8)
    axes[1].annotate("error = tol", (4e-6, 7e-6), color="0.4", fontsize=8, rotation=31, rotation_mode="anchor")
    _save("accuracy_float32.png")


def creases() -> None:
    """Reported errors on ReLU networks, against curves of 512 segments and more."""
    finest = pb.Relax(first_segments=512, max_segments=1024, max_steps=300)
    for d in (2, 8):
        generator = torch.Generator().manual_seed(5)
        start, end = (torch.randn(20, d, generator=generator, dtype=F64) for _ in range(2))
        problem = Problem(f"ReLU network, d = {d}", mlp(d, nn.ReLU), start, end)
        fine = problem.solve(1e-6, solver=finest)
        for tol in (1e-2, 1e-4):
            path = problem.solve(tol)
            good = path.converged & fine.converged
            reported, off = path.length_error / path.length, (path.length / fine.length - 1).abs()
            inside = float((off <= reported + fine.length_error / fine.length)[good].double().mean())
            log.info(
                f"{problem.name}, tol {tol:.0e}: reported {float(reported[good].median()):.1e} in the median, at most "
                f"{float(reported[good].max()):.1e}, moves by {float(off[good].median()):.1e}, inside {inside:.0%}, "
                f"evaluations {float(path.evaluations.double().mean()):.0f}"
            )


def solvers() -> None:
    """Evaluations, failures and errors of each solver; the slow ones on fewer pairs."""
    for problem in (shipped(20), tanh(20)):
        truth = problem.truth(problem.solve(1e-6))
        path = problem.solve(1e-4)
        _row(problem, "Relax", path, truth, 1e-4)
        for name, tol in (("relax", 1e-4), ("relax", 1e-8), ("newton", 1e-10), ("shoot", 1e-10)):
            again = problem.solve(tol, solver=name, init=path.curve)
            _row(problem, f"{name} from Relax at 1e-4", again, truth, tol)
        for name in ("newton", "shoot"):
            _row(problem, name, problem.solve(1e-4, solver=name), truth, 1e-4)
        _row(problem, "straight and bends", problem.solve(1e-4, starts=("straight", "bends")), truth, 1e-4)
        few = problem._replace(start=problem.start[:SLOW], end=problem.end[:SLOW])
        for name in ("collocate", "georce"):
            _row(few, name, few.solve(1e-4, solver=name), truth[:SLOW], 1e-4)


def _row(problem: Problem, name: str, path: pb.Solution, truth: Tensor, tol: float) -> None:
    good = path.converged
    off = (path.length / truth - 1)[good]
    median = float(off.abs().median()) if len(off) else math.nan
    log.info(f"{problem.name}, {name}, tol {tol:.0e}: converged {int(good.sum())} of {len(good)}, "
          f"evaluations median {float(path.evaluations.double().median()):,.0f} "
          f"mean {float(path.evaluations.double().mean()):,.0f}, median error {median:.0e}, "
          f"longer by a thousandth {int((off > 1e-3).sum())}")  # fmt: skip


def _save(name: str) -> None:
    plt.savefig(STATIC / name, dpi=130, metadata={"Software": None})
    plt.close()


def main() -> None:
    parts = {part.__name__: part for part in (orders, errors, valleys, precision, creases, solvers)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="all of them by default")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    torch.set_num_threads(1)
    plt.rcParams.update(STYLE)
    for name in parser.parse_args().parts or parts:
        parts[name]()


if __name__ == "__main__":
    main()
