"""Draws the pictures of docs/statistics.md into docs/_static, and logs what the page states.

OMP_NUM_THREADS=1 python tools/figures_statistics.py                 # some minutes
OMP_NUM_THREADS=1 python tools/figures_statistics.py walks densities # some of them
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pullback as pb

STATIC = Path(__file__).parents[1] / "docs" / "_static"

log = logging.getLogger("figures_statistics")


def around(codes: Tensor, margin: float) -> Tensor:
    """The range of codes and a margin, a latent length: (2, 2)."""
    return torch.stack((codes.amin(0) - margin, codes.amax(0) + margin), -1)


def walks() -> Figure:
    """A Euclidean walk, the walk of the paper, and Brownian motion, on the magnification of the shipped model."""
    model = pb.models.pretrained("mnist012")
    codes = model.codes
    room = around(codes, 2.0)
    table = pb.Tabulated(pb.Pullback(model.decoder), room)
    start = codes[(codes - codes.median(0).values).norm(dim=1).argmin()].expand(6, 2)
    latent = 0.08  # the size of a step where the codes are
    inverse = torch.linalg.inv(table.matrix(codes)).diagonal(dim1=1, dim2=2).mean(1).median() ** 0.5
    step, n_steps, seed = latent / float(inverse), 1500, 3
    found = {
        "Euclidean walk": pb.random_walk(
            pb.Pullback(lambda z: z), start, n_steps, latent, generator=torch.Generator().manual_seed(seed)
        ),
        "random_walk": pb.random_walk(table, start, n_steps, step, generator=torch.Generator().manual_seed(seed)),
        "brownian_motion": pb.brownian_motion(
            table, start, n_steps, n_steps * step**2, domain=room, generator=torch.Generator().manual_seed(seed)
        ),
    }
    figure = Figure(figsize=(15, 5), layout="constrained")
    for ax, (name, walk) in zip(figure.subplots(1, 3), found.items(), strict=True):
        pb.plot.magnification(table, codes=codes[::20], bounds=tuple(map(tuple, room.tolist())), ax=ax)
        for path in walk:
            ax.plot(path[:, 0], path[:, 1], lw=0.7, alpha=0.8)
        ax.set_title(name)
        far = torch.stack([torch.cdist(path, codes[::4]).amin(1).amax() for path in walk])
        log.info("%s: farthest from the codes, mean of %d walks: %.2f", name, len(walk), float(far.mean()))
    return figure


def densities() -> Figure:
    """Points uniform by volume; the density of the codes by Euclidean kernels and by the heat kernel of the metric."""
    from scipy.stats import gaussian_kde

    model = pb.models.pretrained("mnist012")
    metric, codes = pb.Pullback(model.decoder), model.codes
    room = around(codes, 0.6)
    generator = torch.Generator().manual_seed(0)
    uniform = pb.sample_uniform(metric, room, 2000, generator=generator, full=True)
    log.info("uniform points: %.0f%% of the proposals accepted, volume %.4g", 100 * uniform.acceptance, uniform.volume)
    few, held = codes[torch.randperm(len(codes), generator=generator)[:4000]].split(2000)
    axes = [torch.linspace(*side.tolist(), 128, dtype=codes.dtype) for side in room]
    grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).reshape(-1, 2)
    width = pb.kernel_bandwidth(metric, few, kernel="heat", bounds=room)
    heat = pb.kernel_density(metric, few, width, grid, kernel="heat", bounds=room) * metric.log_volume(grid).exp()
    plain = torch.from_numpy(gaussian_kde(few.T.numpy())(grid.T.numpy()))
    score = pb.kernel_density(metric, few, width, held, kernel="heat", bounds=room) * metric.log_volume(held).exp()
    log.info("bandwidth of the heat kernel: %.3g", width)
    log.info("log-likelihood a held-out code: heat kernel %.3f, Euclidean kernel (Scott's rule) %.3f", float(
        score.log().mean()), float(gaussian_kde(few.T.numpy()).logpdf(held.T.numpy()).mean()))  # fmt: skip

    figure = Figure(figsize=(15, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    pb.plot.magnification(metric, bounds=tuple(map(tuple, room.tolist())), ax=left)
    left.plot(uniform.points[:, 0], uniform.points[:, 1], ".", ms=2, color="tab:orange")
    left.set_title("sample_uniform")
    top = float(torch.cat((plain, heat)).quantile(0.995))
    for ax, values, name in ((middle, plain, "Euclidean kernels"), (right, heat, "kernel_density, heat kernel")):
        image = ax.imshow(
            values.reshape(128, 128).clamp_min(1e-4 * top).log10(), origin="lower", extent=room.reshape(-1).tolist(),
            vmin=torch.tensor(1e-4 * top).log10(), vmax=torch.tensor(top).log10(), cmap="viridis",
        )  # fmt: skip
        ax.plot(few[::4, 0], few[::4, 1], "w.", ms=1, alpha=0.5)
        ax.set(title=name, xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
        figure.colorbar(image, ax=ax, shrink=0.85, label="log10 of the density in latent units")
    return figure


def clusters() -> Figure:
    """Three clusters of codes of the shipped model: Euclidean, in the metric, and the digits themselves."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    model = pb.models.pretrained("mnist012")
    some = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(0))[:2000]
    codes, digits = model.codes[some], model.labels[some].numpy()
    metric = pb.Pullback(model.decoder)
    flat = KMeans(3, n_init=10, random_state=0).fit(codes.numpy())
    ours = pb.KMeans(metric, 3, random_state=0).fit(codes.numpy())
    mean = pb.frechet_mean(pb.Tabulated(metric, around(codes, 0.5)), codes, tol=1e-3)
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    for ax, labels, centers, name in zip(
        figure.subplots(1, 3, sharex=True, sharey=True), (flat.labels_, ours.labels_, digits),
        (flat.cluster_centers_, ours.cluster_centers_, None), ("Euclidean k-means", "pb.KMeans", "digits"), strict=True,
    ):  # fmt: skip
        score = adjusted_rand_score(digits, labels)
        log.info("%s: adjusted Rand index %.3f", name, score)
        order = sorted(set(labels.tolist()), key=lambda j: codes[labels == j].mean(0).tolist())
        for color, j in zip(("tab:blue", "tab:orange", "tab:green"), order, strict=True):
            ax.plot(*codes[labels == j].T, ".", color=color, ms=2, label=str(j) if centers is None else None)
        if centers is not None:
            ax.plot(centers[:, 0], centers[:, 1], "k*", ms=12)
            ax.set_title(f"{name}: adjusted Rand index {score:.2f}")
        else:
            ax.set_title(f"{name}, and the means of all codes")
            ax.plot(*codes.mean(0), "kx", ms=10, mew=2, label="arithmetic mean")
            ax.plot(*mean, "k+", ms=12, mew=2, label="Frechet mean")
            ax.legend(loc="lower left", markerscale=0.8, fontsize=8)
        ax.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    return figure


def land() -> Figure:
    """A Gaussian mixture and LAND, with both volume factors, on codes of zeros and ones of the shipped model."""
    from sklearn.metrics import adjusted_rand_score
    from sklearn.mixture import GaussianMixture

    model = pb.models.pretrained("mnist012")
    pick = torch.randperm(len(model.codes), generator=torch.Generator().manual_seed(0))
    pick = pick[model.labels[pick] != 2][:400]
    codes, held, digits = model.codes[pick[:150]], model.codes[pick[150:]], model.labels[pick[150:]].numpy()
    room = around(model.codes, 1.0)
    table = pb.Tabulated(pb.Pullback(model.decoder), room)
    axes = [torch.linspace(*side.tolist(), 32, dtype=codes.dtype) for side in around(codes, 0.6)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), -1).reshape(-1, 2)
    flat = GaussianMixture(2, random_state=0).fit(codes.numpy())
    plain = flat.score_samples(held.numpy())
    log.info("Gaussian mixture: held-out log-likelihood %.3f +- %.3f, adjusted Rand index %.2f", plain.mean(),
             plain.std() / len(plain) ** 0.5, adjusted_rand_score(digits, flat.predict(held.numpy())))  # fmt: skip
    panels = [("Gaussian mixture", torch.from_numpy(flat.score_samples(grid.numpy())), flat.sample(80)[0])]
    for volume in ("exact", "paper"):
        found = pb.LAND(table, 2, volume=volume, random_state=0, n_samples=200, geodesic_tol=1e-2).fit(codes)
        value, error = found.log_likelihood(held, measure="latent")
        log.info("LAND, %s: held-out %.3f +- %.3f, adjusted Rand index %.2f, log C %s +- %s, %s", volume, value, error,
                 adjusted_rand_score(digits, found.predict(held).numpy()), found.log_normalizers_.tolist(),
                 found.log_normalizer_errors_.tolist(), found.failures_)  # fmt: skip
        name = f'pb.LAND, volume="{volume}"'
        panels.append((name, found.score_samples(grid, measure="latent"), found.sample(80)[0]))
    figure = Figure(figsize=(15, 5), layout="constrained")
    for ax, (name, values, drawn) in zip(figure.subplots(1, 3, sharex=True, sharey=True), panels, strict=True):
        image = ax.imshow(
            values.reshape(32, 32), origin="lower", extent=around(codes, 0.6).reshape(-1).tolist(), vmin=-8, vmax=-0.5,
            cmap="viridis", interpolation="bilinear",
        )  # fmt: skip
        ax.plot(codes[:, 0], codes[:, 1], "w.", ms=2, label="codes")
        ax.plot(drawn[:, 0], drawn[:, 1], "x", color="tab:red", ms=4, label="drawn")
        ax.set(title=name, xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
        ax.set(xlim=around(codes, 0.6)[0].tolist(), ylim=around(codes, 0.6)[1].tolist())
    ax.legend(fontsize=8)
    figure.colorbar(image, ax=ax, shrink=0.85, label="logarithm of the density in latent units")
    return figure


def principal() -> Figure:
    """Principal geodesics of the codes of one digit on the magnification of the shipped model, and decoded."""
    model = pb.models.pretrained("mnist012")
    codes = model.codes[model.labels == 1]
    codes = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))[:300]]
    table = pb.Tabulated(pb.Pullback(model.decoder), around(model.codes, 1.0))
    found = pb.principal_geodesics(table, codes, tol=1e-3)
    log.info("principal geodesics of the ones: ratios %s", found.explained_variance_ratio.tolist())
    curves = found.geodesics(extent=1.5)
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    bounds = tuple(map(tuple, around(codes, 0.3).tolist()))
    pb.plot.magnification(table, codes=codes, bounds=bounds, ax=left)
    rows = []
    for color, curve, ratio in zip(("tab:red", "tab:orange"), curves, found.explained_variance_ratio, strict=True):
        left.plot(*curve.nodes.T, color=color, lw=2, label=f"{100 * float(ratio):.0f}% of the variance")
        with torch.no_grad():
            images = model.decoder.mean(curve(torch.linspace(0, 1, 9, dtype=codes.dtype)))
        rows.append(torch.cat(list(images.reshape(9, 28, 28)), 1))
    left.plot(*found.mean, "k*", ms=12, label="Frechet mean")
    left.legend(fontsize=8)
    right.imshow(torch.cat(rows), cmap="gray_r")
    right.set_axis_off()
    right.set_title("decoded, from -1.5 to 1.5 standard deviations")
    return figure


PICTURES = {"clusters": clusters, "land": land, "principal": principal, "walks": walks, "densities": densities}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PICTURES)}; default: all")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in parser.parse_args().names or PICTURES:
        PICTURES[name]().savefig(STATIC / f"statistics_{name}.png", dpi=80)


if __name__ == "__main__":
    main()
