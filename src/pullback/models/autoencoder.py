"""A small autoencoder: an encoder and a decoder that reconstructs the data from the codes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

from jaxtyping import Float
from torch import Generator, Tensor, nn

from pullback.datasets import Dataset
from pullback.models.layers import (
    check_output,
    check_widths,
    decoder_layers,
    give_units,
    linear,
    link,
    take_units,
    tanh_layers,
)
from pullback.models.likelihoods import check_unit_interval
from pullback.models.loop import check_samples
from pullback.models.model import Model, check_data_dim, encoded, standard_units, warn_of_collapse
from pullback.types import Points

_COLLAPSED = 0.01  # spread of codes in a dimension, as a share of the largest one, below which it is called collapsed


class Autoencoder(Model):
    r"""Encoder and decoder with tanh layers, trained to give the data back: the least :math:`|f(g(x)) - x|^2`.

    Encoder g: data, tanh layers of the widths ``hidden``, codes (linear). Decoder f: the same widths reversed, then a
    sigmoid (data in [0, 1]) or nothing. Every part is smooth, as a metric with curvature needs it.

    Args:
        data_dim: D, length of a flattened sample.
        latent_dim: d, length of a code.
        hidden: Widths of the encoder's hidden layers, at least one.
        output: ``"sigmoid"`` or ``"linear"``: what ends the decoder.
        generator: Source of the initial weights of a model that is not trained, uniform in
            :math:`\pm 1/\sqrt{\text{inputs}}`; default: torch's global one.

    Attributes:
        decoder: f: codes (n, d) to data (n, D).
        history: The mean loss of each epoch of the last training.

    Raises:
        ValueError: A width is below one, ``hidden`` is empty or ``output`` unknown.

    Example:
        >>> data = pb.datasets.digits()
        >>> model = Autoencoder(64).fit(data, epochs=2)
        >>> metric = pb.Pullback(model.decoder)
        >>> metric.matrix(model.encode(data.samples[:5])).shape
        torch.Size([5, 2, 2])
    """

    FORMAT = "pullback.autoencoder"

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 2,
        hidden: Sequence[int] = (64, 32),
        *,
        output: str = "sigmoid",
        generator: Generator | None = None,
    ) -> None:
        super().__init__({"data_dim": data_dim, "latent_dim": latent_dim, "hidden": list(hidden), "output": output})
        check_widths(data_dim, latent_dim, hidden)
        check_output(output)
        self.data_dim, self.latent_dim, self.output = data_dim, latent_dim, output
        self.encoder = tanh_layers((data_dim, *hidden), generator)
        self.encoder.append(linear(hidden[-1], latent_dim, generator))
        self.decoder = decoder_layers(latent_dim, hidden, data_dim, generator, link(output))

    def encode(self, x: Float[Tensor, "n D"]) -> Points:
        """Codes of samples: (n, D) -> (n, d)."""
        return self.encoder(x)

    def loss(self, x: Float[Tensor, "n D"]) -> Tensor:
        """Mean squared error of the reconstruction, a scalar. Cost: one forward pass of encoder and decoder."""
        return (self.decoder(self.encode(x)) - x).square().mean()

    def fit(
        self,
        dataset: Dataset,
        *,
        epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        seed: int = 0,
        folder: str | Path | None = None,
        resume: bool = True,
        progress: bool = False,
    ) -> Self:
        """Train by Adam from fresh weights, or go on with a training that was interrupted.

        A resumed training ends with the same weights, bit for bit, as one that was never interrupted. With a linear
        output the data are trained on in standard units, and the model is one of the data as they are.

        Args:
            dataset: What to reconstruct.
            epochs: Passes over the data.
            batch_size: Samples a step.
            learning_rate: Of Adam.
            seed: Of initial weights and batches; the global random state is not used.
            folder: Gets the checkpoint; None: none is written.
            resume: Go on with what the folder holds. False: begin anew and overwrite it.
            progress: Show a bar on the standard error stream.

        Returns:
            The model itself, in eval mode, with its ``history``.

        Warns:
            CollapseWarning: The codes hardly differ in some latent dimension.

        Raises:
            ValueError: The data hold NaN or inf, do not fit the model or are all the same; a setting is out of range;
                the folder holds another run; the loss becomes NaN or infinite.
            OSError: The folder cannot be written.
            KeyboardInterrupt: Passed on; model and checkpoint are those of the last finished epoch.
        """
        check_samples(dataset)
        check_data_dim(dataset, self.data_dim)
        if self.output == "sigmoid":
            check_unit_interval(dataset, "a sigmoid only", "set output to 'linear'")
        shift, scale = standard_units(dataset.samples, self.output)

        def finish(model: Autoencoder) -> None:
            if self.output == "linear":
                take_units(cast(nn.Linear, model.encoder[0]), shift, scale)
                give_units(cast(nn.Linear, model.decoder[-1]), shift, scale)

        self._fit(
            dataset,
            ((dataset.samples - shift) / scale).to(next(self.parameters())),
            lambda model, x, epoch, generator: model.loss(x),
            finish,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            folder=folder,
            resume=resume,
            progress=progress,
        )
        std = encoded(self.encode, dataset.samples.to(next(self.parameters()))).std(0, correction=0)
        warn_of_collapse(std, _COLLAPSED * float(std.max()), "about the same", "train more epochs, or lower latent_dim")
        return self
