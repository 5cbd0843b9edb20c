"""Mixtures on the latent plane: LAND against a Gaussian mixture, on the model of zeros and ones (the paper's figure 9).

The paper fits two components of each kind and shows three things: the density, 40 samples of each component decoded,
and the distances between these. Only the LAND mixture, it says, shows the two clusters, and its samples are sharp; the
Gaussian mixture also draws from where the generator was not trained. It gives no numbers. So we measure

- how well the components agree with the digits, on codes that no mixture was fitted to;
- the standard deviation of the decoder, summed over pixels, at samples;
- the mean distance across components by that within, of samples, for each mixture in its own metric;
- how many geodesics failed.

Both mixtures are fitted to the same k-means centers of the codes, as the author's published code does; his settings
here are unknown. "paper" takes that code's volume factor and scaling of tangents; "exact" the change of variables (see
`pullback.LAND`), and only that is a density, with a likelihood to compare. Geodesics are those of a table of the
metric; some are checked on the decoder itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from context import Context
from mixtures_figure import picture
from mixtures_fits import SHOWN, Part, Scene, gaussian, land_mixture
from results import Claim, Result, Verdict, spread


def run(context: Context) -> Result:
    """Fit the mixtures to each model, compare them, draw the first."""
    parts: dict[str, list[Part]] = {}
    for a in context["bandwidths"]:
        for seed in context.seeds:
            for kind in ("gauss", *volumes(context, a)):
                parts.setdefault(name_of(kind, a), []).append(one(context, kind, seed, a))
    first = context["bandwidths"][0]
    land, flat = parts[name_of(context["volumes"][0], first)], parts[name_of("gauss", first)]
    lands = [part for name, rows in parts.items() if not name.startswith("gauss") for part in rows]
    numbers = {
        name: {field: [row[field] for row in rows] for field in rows[0] if field != "shown"}
        for name, rows in parts.items()
    }
    scene = Scene.of(context, context.seeds[0], first)
    drawn = {kind: parts[name_of(kind, first)][0]["shown"] for kind in ("gauss", *context["volumes"])}
    return Result(
        title="Mixtures in the metric: LAND against Gaussians",
        claims=[
            clusters(land, flat),
            sharpness(parts, context["volumes"][0], context["bandwidths"]),
            blocks(land, flat),
            failures(lands),
        ],
        numbers=numbers,
        caption=(
            f"One model (seed {context.seeds[0]}, a = {first:g}). Left: the density, with codes by digit and samples "
            f"by component. Middle: {SHOWN} samples of each component, decoded, not sorted. Right: distances between "
            "these, component by component: Euclidean for the Gaussian mixture, Riemannian for LAND."
        ),
        paper_figure=(
            "the same for a Gaussian mixture and a LAND mixture, of which only LAND shows two clusters, and whose "
            "samples are sharp where several of the Gaussian mixture are blurred."
        ),
        figure=picture(scene, drawn, context["map"]),
        solved=sum(part["solved"] for part in lands),
        failed=sum(part["failed"] for part in lands),
        findings=findings(context, parts),
    )


def volumes(context: Context, a: float) -> list[str]:
    """The volume factors of LAND on models with the bandwidth factor a: with another than the paper's, its own only."""
    return context["volumes"] if a == context["bandwidths"][0] else context["volumes"][:1]


def name_of(kind: str, a: float) -> str:
    """Of a mixture on models with the bandwidth factor a."""
    return f"{kind}, a = {a:g}"


def one(context: Context, kind: str, seed: int, a: float) -> Part:
    """What is measured of one mixture on one model."""
    shown = seed == context.seeds[0] and a == context["bandwidths"][0]

    def compute() -> Part:
        scene = Scene.of(context, seed, a)
        measure = gaussian if kind == "gauss" else land_mixture
        return measure(context, scene, kind, seed, shown)

    return context.once(f"{kind}-{seed}-{a:g}", compute)


def column(rows: Sequence[Part], field: str) -> list[float]:
    """A field of all seeds."""
    return [row[field] for row in rows]


def listed(values: Sequence[float]) -> str:
    """One number a model."""
    return ", ".join(f"{value:.3f}" for value in values)


def gains(land: Sequence[Part], flat: Sequence[Part], field: str) -> list[float]:
    """By how much a field is larger for LAND, seed by seed."""
    return [ours[field] - theirs[field] for ours, theirs in zip(land, flat, strict=True)]


def clusters(land: Sequence[Part], flat: Sequence[Part]) -> Claim:
    """Whether only LAND finds the digits: 95 in 100 right, the Gaussians below 80. Partly: it gets more right."""
    ours, theirs, gain = column(land, "accuracy"), column(flat, "accuracy"), gains(land, flat, "accuracy")
    found, better = min(ours) >= 0.95, min(gain) >= 0 and statistics.mean(gain) > 0
    return Claim(
        "clusters",
        "Only the LAND mixture finds the two digits as its components",
        "figure: LAND two clusters, Gaussians not",
        f"accuracy on held-out codes {spread(ours, '.3f')} against {spread(theirs, '.3f')}; by model "
        f"{listed(ours)} against {listed(theirs)}",
        statistics.mean(gain),
        0.05,
        Verdict.of(found and max(theirs) < 0.8, partly=found and better),
        "" if max(theirs) < 0.8 else "Gaussian components find most of the digits, too: the codes leave a gap",
    )


def sharpness(parts: dict[str, list[Part]], volume: str, bandwidths: Sequence[float]) -> Claim:
    """Whether the summed deviation at samples of LAND is lower by 10 in 100 on every seed. Partly: with a smaller a."""
    ratios, said = [], []
    for a in bandwidths:
        land, flat = parts[name_of(volume, a)], parts[name_of("gauss", a)]
        ratios.append([ours["deviation"] / theirs["deviation"] for ours, theirs in zip(land, flat, strict=True)])
        said.append(
            f"a = {a:g}: {spread(column(land, 'deviation'), '.0f')} against {spread(column(flat, 'deviation'), '.0f')} "
            f"({spread(column(flat, 'at_codes'), '.0f')} at codes)"
        )
    holds = max(ratios[0]) < 0.9
    return Claim(
        "sharpness",
        "Samples of LAND are sharper: the summed standard deviation of the decoder is lower at them",
        "figure: several samples of the Gaussians are blurry",
        "; ".join(said),
        statistics.mean(ratios[0]),
        0.4,
        Verdict.of(holds, partly=any(max(ratio) < 0.9 for ratio in ratios)),
        "" if holds else f"with a = {bandwidths[0]:g} the deviation hardly rises where the samples of either fall",
    )


def blocks(land: Sequence[Part], flat: Sequence[Part]) -> Claim:
    """Whether components are farther apart, compared to their size, for LAND: by 10 in 100 on every seed."""
    ratio = [ours["contrast"] / theirs["contrast"] for ours, theirs in zip(land, flat, strict=True)]
    return Claim(
        "blocks",
        "Distances between samples show two blocks for LAND, more than for the Gaussians",
        "figure: blocks for LAND only",
        f"mean distance across components by that within {spread(column(land, 'contrast'), '.2f')} against "
        f"{spread(column(flat, 'contrast'), '.2f')}",
        statistics.mean(ratio),
        0.8,
        Verdict.of(min(ratio) >= 1.1, partly=statistics.mean(ratio) > 1),
        "each in its own distances; in straight ones LAND's samples have "
        f"{spread(column(land, 'contrast_euclidean'), '.2f')}, so that a part is the metric's",
    )


def failures(lands: Sequence[Part]) -> Claim:
    """Whether fewer than 5 in 100 geodesics of fits failed."""
    share = sum(column(lands, "failed")) / sum(column(lands, "solved"))
    return Claim(
        "failures",
        "LAND can be fitted: fewer than 5% of its geodesics fail",
        "nothing; later attempts by others report many failures",
        f"{100 * share:.2f}% of {sum(column(lands, 'solved'))} geodesics, to points and cast for normalizers",
        share,
        0.02,
        Verdict.of(share < 0.05),
    )


def findings(context: Context, parts: dict[str, list[Part]]) -> list[str]:
    """Likelihoods, what the volume factor and a change, distances by digit, and how good the table is."""
    told = []
    for a in context["bandwidths"]:
        flat = parts[name_of("gauss", a)]
        told += [compared(volume, a, parts[name_of(volume, a)], flat) for volume in volumes(context, a)]
        there, here = column(flat, "by_digit_metric"), column(flat, "by_digit")
        ratio = [r / e for r, e in zip(there, here, strict=True)]
        told.append(
            f"a = {a:g}: the mean distance of held-out codes of different digits, by that of the same digit, is "
            f"{spread(there, '.2f')} in the metric and {spread(here, '.2f')} in the plane: {spread(ratio, '.2f')} "
            f"times as large."
        )
    flat = parts[name_of("gauss", context["bandwidths"][0])]
    told.append(
        f"The digits without a metric: accuracy {spread(column(flat, 'accuracy_kmeans'), '.3f')} by k-means with two "
        f"centers, {spread(column(flat, 'accuracy_all'), '.3f')} by a Gaussian mixture that is fitted to all codes "
        f"instead "
        f"of {context['centers']} centers."
    )
    off = max(part["off_table"] for rows in parts.values() for part in rows if "off_table" in part)
    told.append(f"Lengths of geodesics on the table and on the decoder itself differ by {100 * off:.2g}% at the most.")
    lands = [part for rows in parts.values() for part in rows if "converged" in part]
    done = sum(part["converged"] for part in lands)
    told.append(f"{done} of {len(lands)} fits of LAND converged within {context['steps']} steps.")
    return told + sorted({f"pullback warned: {warning}" for part in lands for warning in part["warnings"]})[:2]


def compared(volume: str, a: float, land: Sequence[Part], flat: Sequence[Part]) -> str:
    """LAND with a volume factor beside the Gaussian mixture, in a sentence."""
    gain, error = statistics.mean(gains(land, flat, "likelihood")), statistics.mean(column(land, "error"))
    said = "gains" if gain > 0 else "loses"
    density = "" if volume == "exact" else " (though it is no density: it does not integrate to one)"
    return (
        f"a = {a:g}, {volume} volume, in brackets the Gaussian mixture: accuracy "
        f"{spread(column(land, 'accuracy'), '.3f')} "
        f"({spread(column(flat, 'accuracy'), '.3f')}); summed deviation at samples "
        f"{spread(column(land, 'deviation'), '.1f')} "
        f"({spread(column(flat, 'deviation'), '.1f')}), above 99% of the codes' at "
        f"{spread(column(land, 'blurred'), '.2f')} "
        f"({spread(column(flat, 'blurred'), '.2f')}) of them; held-out log-likelihood in latent units "
        f"{spread(column(land, 'likelihood'), '.2f')}{density} ({spread(column(flat, 'likelihood'), '.2f')}): LAND "
        f"{said} "
        f"{abs(gain):.2f}, at a standard error of {error:.2f} in each seed."
    )
