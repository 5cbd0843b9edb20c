"""What errors and warnings of this package say."""

from __future__ import annotations


class CreasesError(ValueError):
    """A decoder is rough; `how` says what makes it so."""

    def __init__(self, message: str, how: str) -> None:
        super().__init__(message)
        self.how = how


def creased(how: str) -> CreasesError:
    """The error for curvature of a decoder that has creases."""
    return CreasesError(
        f"the decoder has creases ({how}): between them its second derivative sees nothing of the bends, on them it "
        "has none: curvature at a point means nothing. Give scale=..., the latent length of the steps of finite "
        "differences, for the curvature at that scale; or train with a smooth activation (softplus, tanh, SiLU).",
        how,
    )


def no_curvature(n_failed: int, n: int, first: int, point: list[float], reason: str) -> str:
    """What a warning says of points without curvature."""
    where = f", {point}" if len(point) <= _SHOWN else ""
    return (
        f"{n_failed} of {n} points have no curvature, and the value NaN; the first is point {first}{where}: {reason}."
    )


def scale_without_immersion() -> ValueError:
    """The error for finite differences of a metric that has no map into Euclidean space."""
    return ValueError(
        "`scale` was given, but the metric is not that of a map into Euclidean space, whose values finite differences "
        "take: leave it out; derivatives of the metric's matrix are taken."
    )


def immersion_needed() -> ValueError:
    """The error for extrinsic curvature of a metric that has no map into Euclidean space."""
    return ValueError(
        "the metric is not that of a map into Euclidean space: it has no normal vectors. Give a Pullback without "
        "`ambient`, of a decoder, Gaussian or Ensemble; curvature inside the latent space (scalar, ricci, sectional) "
        "needs no map."
    )


def too_many_dimensions(d: int, max_dim: int, estimate: bool) -> ValueError:
    """The error for exact curvature in more dimensions than is sensible."""
    instead = "give n_probes=128 for an estimate with its standard error, or " if estimate else ""
    return ValueError(
        f"`z` has latent dimension {d} but `max_dim` is {max_dim}: exact curvature takes {d * (d + 1) // 2} second "
        f"derivatives a point. If you want that, {instead}set max_dim={d}."
    )


def two_dimensions(d: int, what: str) -> ValueError:
    """The error for points of a space that is not two-dimensional."""
    hint = "; a curve has no curvature inside" if d == 1 else "; in more, take sectional, ricci or scalar"
    return ValueError(f"`z` has latent dimension {d}, but {what} is that of a surface, d = 2{hint}.")


def no_planes() -> ValueError:
    """The error for planes in a latent space of one dimension."""
    return ValueError("`z` has latent dimension 1: a curve has no planes, and so no sectional curvature.")


def parallel(i: int, n: int, z: list[float]) -> ValueError:
    """The error for tangents that span no plane at point i."""
    where = f", {z}" if len(z) <= _SHOWN else ""
    return ValueError(f"`u` and `v` are parallel, or one is zero, at point {i} of {n}{where}: they span no plane.")


_SHOWN = 8  # coordinates of a point
