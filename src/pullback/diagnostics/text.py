"""A report as text for people."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator

from pullback.diagnostics.records import GeometryReport, Growth, Spectrum, Variance

_WIDTH = 100
_SHOWN = 8  # principal directions
_KINDS = {
    "gaussian": "modeled: the decoder's standard deviation",
    "ensemble": "modeled: the disagreement of an ensemble",
    "data": "the metric is that of the data's local variance",
    "none": "none to be seen: a plain decoder (only a Gaussian or an Ensemble tells)",
    "unknown": "unknown: a metric, or outputs, of your own",
}


def report_text(report: GeometryReport) -> str:
    """The verdict, the advice, then the numbers."""
    lines = [*_wrapped(_capital(report.sentence) + ".", ""), ""]
    for number, one in enumerate(report.advice, 1):
        lines += _wrapped(one, f"{number}. ")
    lines += [""] if report.advice else []
    lines += [f"{report.metric}, d = {report.dim}, {report.n_codes:,} codes, {report.dtype}", ""]
    lines += [f"{'':32}{'median':>10}{'5%':>10}{'95%':>10}"]
    for spectrum in (report.on_data, report.in_box):
        lines += _spectrum(spectrum)
    lines += ["", *_growth(report.growth), "", *_rest(report)]
    return "\n".join(lines)


def _spectrum(spectrum: Spectrum) -> Iterator[str]:
    undefined = f", no metric at {spectrum.n_undefined}" if spectrum.n_undefined else ""
    singular = (
        f", rank {spectrum.rank} at the least, singular at {spectrum.n_deficient}" if spectrum.n_deficient else ""
    )
    yield f"{spectrum.where}: {spectrum.n_points:,} points{undefined}{singular}"
    rows = [("condition number", spectrum.condition), ("log volume", spectrum.log_volume)]
    rows += [(f"stretch {k + 1}", stretch) for k, stretch in enumerate(spectrum.stretch[:_SHOWN])]
    if len(spectrum.stretch) > _SHOWN:
        rows += [(f"stretch {len(spectrum.stretch)}", spectrum.stretch[-1])]
    for name, values in rows:
        yield f"  {name:30}{values.median:10.4g}{values.low:10.4g}{values.high:10.4g}"


def _growth(growth: Growth) -> Iterator[str]:
    yield f"the metric {growth.verdict.value}"
    yield f"  {'distance to the data':22}{'length of a unit step, times that on the data':>48}"
    yield f"  {'':22}{'median':>10}{'5%':>10}{'95%':>10}{'above':>10}"
    for shell in growth.shells:
        if not shell.n_points:
            yield f"  {shell.distance:<22.3g}{'no metric':>10}"
            continue
        spread = shell.log_stretch
        factors = [_times(value - growth.on_data.median) for value in (spread.median, spread.low, spread.high)]
        yield f"  {shell.distance:<22.3g}{''.join(f'{x:>10}' for x in factors)}{100 * shell.above:9.0f}%"
    yield f"  (codes: {growth.spread:.3g} from their mean, {growth.spacing:.2g} from each other)"


def _times(log: float) -> str:
    return f"{math.exp(min(log, 700.0)):.3g}" if not math.isnan(log) else "?"


def _variance(variance: Variance) -> str:
    if variance.kind == "likelihood":
        return f"by the likelihood ({variance.family}): Fisher-Rao distances count in its standard deviations"
    said = _KINDS[variance.kind]
    if variance.on_data is None or variance.off_data is None:
        return said
    return f"{said}; its share of squared lengths: {variance.on_data:.0%} on the data, {variance.off_data:.0%} far off"


def _rest(report: GeometryReport) -> Iterator[str]:
    lines, isometry = report.lines, report.isometry
    smooth = {None: "cannot be told (no second derivatives)", "": "smooth"}
    rows = {
        "variance": _variance(report.variance),
        "decoder": smooth.get(report.creases, f"creases: {report.creases}"),
        "from c I": f"lengths of unit steps vary by {isometry.defect:.1%}, around {isometry.scale:.4g}",
        "from a constant matrix": f"they vary by {isometry.constant_defect:.1%}",
        "straight / geodesic": f"median {lines.ratio.median:.4f}, 5% {lines.ratio.low:.4f}, 95% {lines.ratio.high:.4f}"
        f", largest {lines.worst:.4f}",
        "": (
            "too few pairs for an interval of the median"
            if lines.interval is None
            else f"95% interval of the median {lines.interval[0]:.4f} to {lines.interval[1]:.4f}"
        )
        + ("" if lines.disjoint else ", a little too narrow: pairs share codes"),
        "pairs": f"{lines.n_pairs}, {lines.n_used} with a ratio; geodesics "
        + ", ".join(f"{count} {name}" for name, count in lines.statuses.items()),
        "off the data": f"{lines.line_off:.1%} of straight lines, {lines.geodesic_off:.1%} of geodesics",
    }
    for name, said in rows.items():
        yield from _wrapped(said, f"{name:24}")


def _wrapped(text: str, head: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) or [head.rstrip()]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
