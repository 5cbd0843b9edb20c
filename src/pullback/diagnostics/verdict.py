"""The plain verdict, and what to do about what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from pullback.diagnostics.records import Direction, Findings, Lines, Off, Verdict
from pullback.geodesics import Status

_FLAT, _NEARLY, _STRONGLY = 1e-3, 0.03, 0.1  # what lines may be longer by: of 95% of the pairs; of half of them, twice
_TAIL = 0.15  # of 95% of the pairs, for nearly flat
_FAILED = 0.1  # share of the pairs whose geodesics may fail
_UNDEFINED = 0.01  # share of the codes that may have no metric
_CROOKED = 0.05  # share of the pairs whose straight line may be shorter than what was called a geodesic
_FEW = 10  # pairs, that settle nothing
_ILL = 0.01  # of what the dtype can tell: a condition number beyond is more rounding than geometry
_SHORTCUTS = 0.1  # share of a curve, by which geodesics may be off the data more than lines are
_SPARSE = 0.5  # share of lines off the data, from which on codes are too sparse to say what is off them
_GAPS = 0.9  # share of a shell that is to be higher than the data
_SIMPLE = 0.1  # a defect below which the simpler metric will do


def judged(found: Findings) -> tuple[Verdict, str]:
    """The verdict and its sentence."""
    if reason := _unbelievable(found):
        return Verdict.NOT_BELIEVABLE, f"cannot be believed: {reason}"
    lines = found.lines
    middle, tail = lines.ratio.median - 1, lines.ratio.high - 1
    if tail < _FLAT:
        verdict = Verdict.FLAT
    elif middle < _NEARLY and tail < _TAIL:
        verdict = Verdict.NEARLY_FLAT
    else:
        verdict = Verdict.STRONGLY_CURVED if middle >= _STRONGLY else Verdict.CURVED
    if found.dim == 1:
        return verdict, f"{verdict.value}: with one latent dimension every straight line is a geodesic"
    return verdict, f"{verdict.value}: {_compared(lines, verdict)}"


def _compared(lines: Lines, verdict: Verdict) -> str:
    few = f", but {_counted(lines.n_used, 'pair')} settle{'s' if lines.n_used == 1 else ''} nothing"
    end = few if lines.n_used < _FEW else ""
    middle, tail = lines.ratio.median - 1, lines.ratio.high - 1
    if verdict is Verdict.FLAT:
        return f"straight lines are geodesics on these data (95% of the pairs: within {_percent(_FLAT)}){end}"
    between = ""
    if lines.interval is not None:
        low, high = (_percent(max(value - 1, 0)) for value in lines.interval)
        between = f"95% interval {low} to {high}; "
    if verdict is Verdict.NEARLY_FLAT:
        head = f"straight lines are within {_percent(max(middle, _FLAT))} of geodesics on these data"
        return f"{head} (half of the pairs; {between}95% of the pairs: within {_percent(tail)}){end}"
    head = f"straight lines are {_percent(middle)} longer than geodesics on these data"
    return f"{head} (median; {between}one pair in twenty: over {_percent(tail)}){end}"


def _unbelievable(found: Findings) -> str:
    """Why nothing that is measured means much; empty when it does."""
    data, lines = found.on_data, found.lines
    if data.n_undefined > _UNDEFINED * data.n_points:
        return f"there is no metric at {data.n_undefined} of {data.n_points} codes (first: code {data.first_undefined})"
    if found.dead:
        names = _listed(found.dead)
        return f"the decoder does not change along {names}: rank {found.dim - len(found.dead)} of {found.dim}"
    if data.n_deficient > 0.5 * data.n_points:
        return (
            f"the metric is singular at {data.n_deficient} of {data.n_points} codes (rank {data.rank} of {found.dim})"
        )
    if lines.n_failed > _FAILED * lines.n_pairs:
        ended = ", ".join(f"{count} {name}" for name, count in lines.statuses.items() if name not in _GOOD)
        return f"{lines.n_failed} of {lines.n_pairs} geodesics failed{f' ({ended})' if ended else ''}"
    if lines.n_shorter > _CROOKED * lines.n_pairs:
        return f"{lines.n_shorter} of {lines.n_pairs} straight lines are shorter than what was found as geodesics"
    if lines.statuses.get("ROUNDING", 0) > _FAILED * lines.n_pairs:
        return f"{lines.statuses['ROUNDING']} of {lines.n_pairs} lengths drown in the rounding of {found.dtype}"
    return ""


def advice(found: Findings, verdict: Verdict) -> tuple[str, ...]:
    """What is wrong and what to do about it, a line each."""
    return (
        *_of_rank(found),
        *_of_numbers(found),
        *_of_lines(found),
        *_off_the_data(found, verdict),
        *_of_flatness(found, verdict),
    )


def _of_rank(found: Findings) -> Iterator[str]:
    if found.dead:
        yield (
            f"The decoder ignores {_listed(found.dead)}: lengths along such a direction are zero, and volumes, logs "
            "and curvature are not defined. Leave it out, train with a smaller latent_dim, or keep it alive (warm-up "
            "of the divergence, a smaller output_std)."
        )
    if found.weak:
        most = max(direction.share for direction in found.weak)
        yield (
            f"The decoder hardly follows {_listed(found.weak)}: at most {100 * most:.2g}% as far as the strongest "
            "direction. Distances hardly see it; perhaps it has collapsed (warm-up, a smaller output_std)."
        )
    if found.unused:
        names = ", ".join(f"z_{i + 1}" for i in found.unused)
        yield f"The codes hardly differ in {names}: what is measured there is not about your data. Look at the encoder."
    if found.on_data.n_deficient and not found.dead:
        yield (
            f"The metric is singular at {found.on_data.n_deficient} of {found.on_data.n_points} codes: the decoder is "
            "saturated there, or folds. Look at these codes; float64 helps where it is rounding."
        )


def _of_numbers(found: Findings) -> Iterator[str]:
    data = found.on_data
    if data.n_undefined:
        yield (
            f"No metric at {data.n_undefined} of {data.n_points} codes, the first is code {data.first_undefined}: the "
            "decoder gives NaN or infinity there, or the table or matrix does not reach that far. Look at that code."
        )
    if data.condition.median > _ILL / found.rounding and not found.dead:
        cure = "use float64" if found.dtype == "float32" else "rescale the latent coordinates"
        yield f"The condition number, {data.condition.median:.1g}, is near what {found.dtype} can tell: {cure}."
    if found.creases:
        yield (
            f"The decoder has creases ({found.creases}): lengths and geodesics are right to their stated errors, but "
            "curvature at a point means nothing. Give curvature scale=..., or train with tanh, softplus or SiLU."
        )
    elif found.lines.statuses.get("NON_SMOOTH", 0) > _FAILED * found.lines.n_pairs:
        yield (
            f"{found.lines.statuses['NON_SMOOTH']} of {found.lines.n_pairs} geodesics cross creases or steep walls: "
            "their lengths are known to length_error only."
        )


def _of_lines(found: Findings) -> Iterator[str]:
    lines = found.lines
    for name, count in lines.statuses.items():
        if name not in _GOOD:
            yield f"{count} of {lines.n_pairs} geodesics {Status[name].value}."
    if lines.n_failed:
        yield f"The {lines.n_failed} pairs without a ratio are left out of it: they may be the most curved ones."
    if lines.n_shorter:
        yield (
            f"{lines.n_shorter} straight lines are shorter than the geodesics found: these are other local minima. "
            "Give "
            'geodesic several starts ("straight", "bends", a graph).'
        )
    if lines.n_used < _FEW:
        yield f"Only {_counted(lines.n_used, 'pair')} could be compared: give more codes, or a larger n_pairs."


def _off_the_data(found: Findings, verdict: Verdict) -> Iterator[str]:
    growth, variance, lines = found.growth, found.variance, found.lines
    away = growth.verdict
    window = f"{growth.shells[-1].distance:.2g}" if growth.shells else ""
    if away in (Off.SHRINKS, Off.FLAT) and not (away is Off.FLAT and verdict is Verdict.FLAT):
        why = {
            "none": ", and no variance is to be seen in it",
            "gaussian": ": its variance does not grow there",
            "ensemble": ": its members agree there",
            "likelihood": ": its distributions hardly differ there",
        }
        cure = {
            "ensemble": "Let disagreement count more, Ensemble(decoders, weight=...), or model a variance that grows",
            "likelihood": "Add a metric that grows, such as LocalVariance(codes, ...)",
        }
        yield (
            f"Nothing keeps curves near the data: the metric {'shrinks' if away is Off.SHRINKS else 'stays flat'} off "
            f"them{why.get(variance.kind, '')}. {cure.get(variance.kind, _GROWING)}; or stay on the data with a graph "
            "(knn_graph)."
        )
    if away is Off.RING:
        higher = "a smaller zeta of an RBFPrecision, a larger bandwidth"
        cure = f"make the wall higher: {higher}" if variance.kind == "gaussian" else _GROWING[0].lower() + _GROWING[1:]
        fall = f"a factor of {growth.fall:.3g}" if growth.fall < _HUGE else "more than a million times"
        yield (
            f"Beyond a distance of {growth.peak:.2g} from the data the metric falls again, by {fall}: a curve that "
            f"gets there is not held back any more. Keep curves inside, or {cure}."
        )
    if away is Off.SATURATES:
        yield (
            f"The metric stops growing within {window} of the data: the way around the data costs as much at any "
            "distance. If curves leave, make the plateau higher (a smaller zeta or floor)."
        )
    walls = [shell for shell in growth.shells if shell.n_points and shell.distance == growth.peak]
    if away in (Off.GROWS, Off.SATURATES, Off.RING) and walls and walls[0].above < _GAPS:
        yield (
            f"The growth has gaps: at {_percent(1 - walls[0].above)} of the points at distance {growth.peak:.2g} the "
            "metric is below its median on the data. Curves may leave there; an Ensemble or a variance closes them."
        )
    if lines.geodesic_off > lines.line_off + _SHORTCUTS and lines.line_off < _SPARSE:
        yield (
            f"Geodesics are off the data for {_percent(lines.geodesic_off)} of their way, straight lines for "
            f"{_percent(lines.line_off)}: they take shortcuts through what the model never learned."
        )


def _of_flatness(found: Findings, verdict: Verdict) -> Iterator[str]:
    if verdict not in (Verdict.FLAT, Verdict.NEARLY_FLAT) or found.dim == 1:
        return
    if found.isometry.defect < _SIMPLE:
        yield (
            f"Euclidean distance between codes times {found.isometry.scale:.3g} does nearly as well, at no cost: the "
            f"metric is that multiple of the identity to {_percent(found.isometry.defect)}."
        )
    elif found.isometry.constant_defect < _SIMPLE:
        yield (
            "One constant matrix, the mean of metric.matrix(codes), does nearly as well, at no cost: the metric is "
            f"constant to {_percent(found.isometry.constant_defect)}."
        )
    else:
        yield (
            "Geodesics gain little here. Distances still depend on the place, so measure straight lines by the metric "
            "(pb.length), not by Euclid; walls or barriers may matter for single pairs."
        )


def _listed(directions: tuple[Direction, ...]) -> str:
    names = [direction.name for direction in directions[:_NAMED]]
    more = len(directions) - len(names)
    return " and ".join([*names, f"{more} more"] if more else names)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _percent(share: float) -> str:
    """A share, not negative, in percent."""
    percent = 100 * max(share, 0.0)
    return f"{percent:.1f}%" if percent < _ROUND else f"{percent:.0f}%"


_ROUND = 9.95  # per cent, from which on tenths do not matter
_HUGE = 1e6  # a factor that need not be told exactly
_GROWING = (
    "Model a variance that grows (models.train, or Gaussian(mean, std) with an RBFPrecision), or take an Ensemble"
)
_NAMED = 3  # directions that are named one by one
_GOOD = ("CONVERGED", "NON_SMOOTH", "ROUNDING")
