"""The settings of a training run."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_ZETA = 1e-8  # a larger floor of the precision lets the wall around the data fall back within sight
OUTPUTS = ("auto", "sigmoid", "linear")


@dataclass(frozen=True)
class TrainingSettings:
    """How an RBF-VAE is built and trained; the defaults are those of the paper where it states them.

    Attributes:
        latent_dim: d, length of a code.
        hidden: Widths of the encoder's hidden layers; the decoder has them reversed.
        output: What ends the decoder: ``"sigmoid"``, ``"linear"``, or ``"auto"``: sigmoid when all data lie in [0, 1].
        output_std: Standard deviation of the data around the mean while encoder and mean are trained; smaller keeps
            more in the codes. With a linear output in units of the standard deviation of all data.
        epochs: Passes over the data for encoder and mean.
        warmup: Share of these over which the weight of the divergence rises from 0 to 1.
        batch_size: Samples a step.
        learning_rate: Of Adam, for encoder and mean.
        weight_decay: L2 penalty on encoder and mean.
        rbf_centers: K, number of radial basis functions.
        rbf_bandwidth: a, scale of their widths; larger is smoother.
        rbf_epochs: Passes over the data for the precision.
        rbf_learning_rate: Of Adam, for the weights of the precision.
        rbf_weight_decay: L2 penalty on the weights of the precision; it bounds the smallest standard deviation.
        zeta: Smallest precision, at most 1e-8; with a linear output in units of the inverse variance of all data.

    Raises:
        ValueError: A setting is out of range; the message says what is wanted.
    """

    latent_dim: int = 2
    hidden: tuple[int, ...] = (64, 32)
    output: str = "auto"
    output_std: float = 1.0
    epochs: int = 300
    warmup: float = 1 / 3
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    rbf_centers: int = 64
    rbf_bandwidth: float = 2.0
    rbf_epochs: int = 50
    rbf_learning_rate: float = 1.0
    rbf_weight_decay: float = 1e-5
    zeta: float = 1e-10

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        if not self.hidden:
            raise ValueError("`hidden` is empty: name at least one width, such as (64, 32)")
        counts = {f"hidden[{i}]": width for i, width in enumerate(self.hidden)}
        for name in ("latent_dim", "epochs", "batch_size", "rbf_centers", "rbf_epochs"):
            counts[name] = getattr(self, name)
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` is {value!r}: wanted a whole number of at least 1")
        for name in ("output_std", "learning_rate", "rbf_learning_rate", "rbf_bandwidth", "zeta"):
            _check_number(name, getattr(self, name), positive=True)
        for name in ("weight_decay", "rbf_weight_decay", "warmup"):
            _check_number(name, getattr(self, name), positive=False)
        if self.warmup > 1:
            raise ValueError(f"`warmup` is {self.warmup}: wanted a share of the epochs, from 0 to 1")
        if self.zeta > MAX_ZETA:
            raise ValueError(
                f"`zeta` is {self.zeta}: wanted at most {MAX_ZETA}; above it the metric falls back close to the data"
            )
        if self.output not in OUTPUTS:
            raise ValueError(f"`output` is {self.output!r}: wanted one of {', '.join(OUTPUTS)}")

    def to_record(self) -> dict[str, Any]:
        """The settings as JSON can hold them."""
        return {**dataclasses.asdict(self), "hidden": list(self.hidden)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "TrainingSettings":
        """The inverse of :meth:`to_record`.

        Raises:
            ValueError: A setting is unknown or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(record) - known):
            raise ValueError(f"unknown settings {', '.join(unknown)}: wanted some of {', '.join(sorted(known))}")
        return cls(**record)


def _check_number(name: str, value: Any, *, positive: bool) -> None:
    wanted = "positive" if positive else "of at least 0"
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or value < 0 or (positive and value == 0):
        raise ValueError(f"`{name}` is {value!r}: wanted a finite number {wanted}")
