"""What one mixture on one model amounts to: how it is fitted and what is measured of it."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from context import Context, box
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

import pullback as pb
from pullback.models import RBFVAE

Part = dict[str, Any]
FRAMES = {"paper": "euclidean", "exact": "orthonormal"}
EDGE = 0.1  # of a map around the codes, a share of their extent
BLURRED = 0.99  # quantile of the summed deviation at codes
SHOWN = 40  # samples of each component


class Scene(NamedTuple):
    """A model with its metric on a table, points to fit to, and codes that are held out with their digits."""

    model: RBFVAE
    table: pb.Tabulated
    centers: Tensor
    rest: Tensor
    held: Tensor
    digits: Tensor
    limits: Tensor  # (2, 2), of maps

    @classmethod
    def of(cls, context: Context, seed: int, a: float) -> Scene:
        """The model of a seed with the bandwidth factor a. The encoder does not depend on that."""
        dataset = context.images([0, 1])
        model = context.model(dataset, seed, rbf_bandwidth=a)
        codes = model.encode(dataset.samples)
        held, rest = codes[: context["held_out"]], codes[context["held_out"] :]
        centers = KMeans(context["centers"], n_init=2, random_state=seed).fit(rest.numpy()).cluster_centers_
        table = pb.Tabulated(pb.Pullback(model.decoder), box(codes, context["room"]), context["table"], at=held)
        digits = dataset.labels[: len(held)]  # pyright: ignore[reportOptionalSubscript]
        return cls(model, table, torch.from_numpy(centers), rest, held, digits, box(codes, EDGE))

    def deviation(self, z: Tensor) -> Tensor:
        """The decoder's standard deviations at points (n, 2), summed over pixels: (n,)."""
        return self.model.rbf(z).sum(-1)

    def distances(self, context: Context, z: Tensor) -> Tensor:
        """Between points (n, 2), in the metric: along a grid with the points put in."""
        grid = pb.grid_graph(self.table, self.table.bounds, context["grid"]).insert(self.table, z)
        return pb.distance_matrix(self.table, z, graph=grid)

    def cells(self, resolution: int) -> Tensor:
        """The points of a map (resolution^2, 2), its bottom row first."""
        axes = [torch.linspace(*side.tolist(), resolution, dtype=side.dtype) for side in self.limits]
        return torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).reshape(-1, 2)

    def of_samples(self, z: Tensor) -> Part:
        """How sharp points drawn from a mixture are when decoded."""
        there, here = self.deviation(z), self.deviation(self.held)
        blurred = (there > here.quantile(BLURRED)).double().mean()
        return {"deviation": float(there.mean()), "at_codes": float(here.mean()), "blurred": float(blurred)}


def gaussian(context: Context, scene: Scene, _: str, seed: int, shown: bool) -> Part:
    """A Gaussian mixture of the centers; beside it one of all codes, and k-means, where LAND begins."""
    held = scene.held.numpy()
    fit = GaussianMixture(2, n_init=10, random_state=seed).fit(scene.centers.numpy())
    every = GaussianMixture(2, n_init=10, random_state=seed).fit(scene.rest.numpy())
    means = KMeans(2, n_init=10, random_state=seed).fit(scene.centers.numpy())
    found, at_all = fit.score_samples(held), every.score_samples(held)
    z, component = (torch.from_numpy(part) for part in fit.sample(context["samples"]))
    some, of = first_of_each(z, component)
    apart = torch.cdist(some, some)
    part = {
        **agreement(fit.predict(held), scene.digits),
        "accuracy_all": agreement(every.predict(held), scene.digits)["accuracy"],
        "accuracy_kmeans": agreement(means.predict(held), scene.digits)["accuracy"],
        "likelihood": float(found.mean()),
        "error": standard_error(found),
        "likelihood_all": float(at_all.mean()),
        **scene.of_samples(z),
        "contrast": contrast(apart, of),
        "by_digit": contrast(torch.cdist(scene.held, scene.held), scene.digits),
        "by_digit_metric": contrast(scene.distances(context, scene.held), scene.digits),
    }
    if shown:
        cells = scene.cells(context["map"])
        part["shown"] = drawing(scene, torch.from_numpy(fit.score_samples(cells.numpy())), some, of, apart)
    return part


def land_mixture(context: Context, scene: Scene, volume: str, seed: int, shown: bool) -> Part:
    """A LAND mixture of the centers."""
    land = pb.LAND(
        scene.table, 2, volume=volume, frame=FRAMES[volume], n_samples=context["casts"], max_iter=context["steps"],
        tol=context["tol"], geodesic_tol=1e-2, random_state=seed,
    ).fit(scene.centers)  # fmt: skip
    value, error = land.log_likelihood(scene.held, measure="latent")
    predicted = land.predict(scene.held).numpy()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", pb.StatisticsWarning)
        z, component = land.sample(context["samples"])
    some, of = first_of_each(z, component)
    apart = scene.distances(context, some)
    lost = land.failures_
    part = {
        **agreement(predicted, scene.digits),
        "likelihood": float(value),
        "error": float(error),
        **scene.of_samples(z),
        "contrast": contrast(apart, of),
        "contrast_euclidean": contrast(torch.cdist(some, some), of),
        "weights": land.weights_.tolist(),
        "steps": land.n_iter_,
        "converged": land.converged_,
        "off_table": off_table(scene, land.means_),
        "solved": 2 * (len(scene.centers) + context["casts"]) + len(scene.held),
        "failed": len(lost.logs) + lost.casts + int((predicted < 0).sum()),
        "past_conjugate": lost.beyond,
        "warnings": [str(warning.message) for warning in told],
    }
    if shown:
        density = land.score_samples(scene.cells(context["map"]), measure="latent")
        part["shown"] = drawing(scene, density, some, of, apart)
    return part


def off_table(scene: Scene, means: Tensor) -> float:
    """How much lengths of geodesics from means to codes differ on the table and on the decoder, at the most."""
    far = scene.held[:5]
    path = pb.geodesic(scene.table, means[:, None], far)
    true = pb.geodesic(scene.table.metric, means[:, None], far, init=path.curve)
    both = path.converged & true.converged
    return float((path.length[both] / true.length[both] - 1).abs().max())


def agreement(component: Any, digits: Tensor) -> Part:
    """How well components (n,) agree with digits of two classes, the better way around; -1 is none."""
    component, classes = np.asarray(component), (digits == digits.max()).numpy()
    right = max(float((component == classes).mean()), float((component == 1 - classes).mean()))
    return {"accuracy": right, "rand": float(adjusted_rand_score(classes, component))}


def first_of_each(z: Tensor, component: Tensor) -> tuple[Tensor, Tensor]:
    """The first samples of each component, at most as many as are shown."""
    rows = torch.cat([(component == k).nonzero().reshape(-1)[:SHOWN] for k in (0, 1)])
    return z[rows], component[rows]


def contrast(distances: Tensor, classes: Tensor) -> float:
    """The mean of distances (n, n) across classes by that within."""
    same = classes[:, None] == classes
    other = ~torch.eye(len(classes), dtype=torch.bool)
    return float(distances[~same].mean() / distances[same & other].mean())


def standard_error(values: np.ndarray) -> float:
    """Of a mean."""
    return float(values.std(ddof=1) / len(values) ** 0.5)


def drawing(scene: Scene, density: Tensor, z: Tensor, component: Tensor, distances: Tensor) -> Part:
    """What the picture of a mixture needs, as JSON holds it; where no component sees a cell it has no density."""
    values = [round(value, 3) if np.isfinite(value) else None for value in density.tolist()]
    box = scene.limits
    cell = float((box[:, 1] - box[:, 0]).prod()) / len(density)
    return {
        "density": values,
        "mass": float(density.exp().nansum()) * cell,
        "samples": z.tolist(),
        "component": component.tolist(),
        "distances": [[round(value, 3) for value in row] for row in distances.tolist()],
    }
