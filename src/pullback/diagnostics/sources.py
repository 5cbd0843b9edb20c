"""What a metric is made of: whether a variance is in it, and whether its decoder has creases."""

from __future__ import annotations

import torch

from pullback.curvature.errors import CreasesError
from pullback.curvature.immersion import immersion
from pullback.decoders import Ensemble, FeatureMap, Gaussian, Stacked
from pullback.diagnostics.records import Variance
from pullback.diagnostics.spectra import Sampled, sampled
from pullback.metrics import Conformal, FisherRao, LocalVariance, Metric, Pullback, Scaled, Sum, Tabulated
from pullback.types import Points

_POINTS = 500  # at which shares are measured


def creases(metric: Metric, z: Points) -> str | None:
    """What makes the decoder behind a metric rough; empty when it is smooth, None when that cannot be told."""
    try:
        immersion(metric, z[:1] if isinstance(metric, Tabulated) else z)
    except CreasesError as error:
        return error.how
    except ValueError:  # no second derivative, or no gradient at all
        return None
    return ""


def variance(metric: Metric, data: Sampled, off: Sampled) -> Variance:
    """Whether uncertainty is in a metric, and its share at the codes and off them."""
    kind, family, certain = _source(metric)
    if certain is None:
        return Variance(kind, None, None, family)
    return Variance(kind, _share(certain, data), _share(certain, off), family)


def _share(certain: Metric, whole: Sampled) -> float | None:
    """What the metric of the mean leaves of the trace of the whole one, a median over points."""
    traces = whole.eigenvalues[:_POINTS].sum(-1)
    part = sampled(certain, whole.z[:_POINTS])
    if part.undefined or not len(traces):
        return None
    return float((1 - part.eigenvalues.sum(-1) / traces).nan_to_num(0.0).clamp(0, 1).median())


def _source(metric: Metric) -> tuple[str, str, Metric | None]:
    """The kind of variance, the family of a likelihood, and the metric without the variance if there is one."""
    if isinstance(metric, FisherRao):
        return "likelihood", getattr(metric.feature_map.kind, "__name__", ""), None
    if isinstance(metric, LocalVariance):
        return "data", "", None
    if isinstance(metric, Pullback):
        return _of_decoder(metric)
    if isinstance(metric, Tabulated):
        kind, family, _ = _source(metric.metric)
        return kind, family, None
    if isinstance(metric, Scaled):
        kind, family, certain = _source(metric.metric)
        return kind, family, None if certain is None else metric.factor * certain
    parts = metric.parts if isinstance(metric, Sum) else [metric.metric] if isinstance(metric, Conformal) else []
    found = [_source(part)[:2] for part in parts]
    told = next((one for one in found if one[0] not in ("none", "unknown")), None)
    if told is not None:
        return told[0], told[1], None
    plain = bool(found) and isinstance(metric, Sum) and all(kind == "none" for kind, _ in found)
    return ("none" if plain else "unknown"), "", None  # a factor may hold a variance


def _of_decoder(metric: Pullback) -> tuple[str, str, Metric | None]:
    outer, plain = metric.feature_map, metric.immersed
    while isinstance(outer.decoder, FeatureMap):
        plain, outer = plain and outer.features is None, outer.decoder
    plain = plain and outer.features is None and outer.output is None
    decoder = outer.decoder
    if isinstance(decoder, Gaussian):
        return "gaussian", "", Pullback(decoder.mean, memory=metric.memory) if plain else None
    if isinstance(decoder, Ensemble):
        mean = Ensemble(list(decoder.members), weight=0) if len(decoder.members) > 1 else None
        return "ensemble", "", Pullback(mean, memory=metric.memory) if plain and mean is not None else None
    if isinstance(decoder, Stacked):
        return _of_stack(decoder, plain)
    several = isinstance(outer.output, tuple) or isinstance(metric.ambient, Metric)
    return ("unknown" if several else "none"), "", None


def _of_stack(decoder: Stacked, plain: bool) -> tuple[str, str, Metric | None]:
    maps = [part for part in decoder.maps if isinstance(part, FeatureMap)]
    found = [_of_decoder(Pullback(part)) for part in maps]
    kind = next((kind for kind, _, _ in found if kind != "none"), "none")
    certain = [_certain(part, one) for part, one in zip(maps, found, strict=True)]
    if kind == "none" or not plain or None in certain:
        return kind, "", None
    return kind, "", Pullback(Stacked([part for part in certain if part is not None], decoder.weights))


def _certain(part: FeatureMap, found: tuple[str, str, Metric | None]) -> FeatureMap | None:
    """A decoder without its variance; None if that cannot be taken from it."""
    if found[0] == "none":
        return part
    return found[2].feature_map if isinstance(found[2], Pullback) else None


def kind_of(metric: Metric) -> str:
    """The metric in a word or two."""
    if isinstance(metric, Sum):
        return " + ".join(dict.fromkeys(kind_of(part) for part in metric.parts))
    if isinstance(metric, Scaled):
        return f"{metric.factor:g} * {kind_of(metric.metric)}"
    name = type(metric).__name__
    if isinstance(metric, Tabulated | Conformal):
        return f"{name}({kind_of(metric.metric)})"
    if type(metric) is Pullback:
        decoder = metric.feature_map.decoder
        while isinstance(decoder, FeatureMap):
            decoder = decoder.decoder
        inside = type(decoder).__name__
        return f"{name}({inside})" if isinstance(decoder, torch.nn.Module) else name
    return name
