"""A small variational autoencoder whose codes fill a unit Gaussian: the model that the geometry is measured on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self, cast

from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from pullback.datasets import Dataset
from pullback.models import likelihoods
from pullback.models.layers import (
    check_output,
    check_widths,
    decoder_layers,
    give_units,
    linear,
    noise_like,
    take_units,
    tanh_layers,
)
from pullback.models.loop import check_samples
from pullback.models.model import Model, check_data_dim, encoded, standard_units, warn_of_collapse
from pullback.types import Points, Scalars

COLLAPSED = 0.1  # standard deviation of codes below which a latent dimension is called collapsed


class VAE(Model):
    r"""A variational autoencoder with tanh layers, whose decoder gives the mean of its likelihood.

    Encoder: data, tanh layers of the widths ``hidden``, then two heads, mean :math:`m(x)` (linear) and standard
    deviation :math:`s(x)` (softplus). Decoder: the same widths reversed, then what the likelihood asks for. Every part
    is smooth, as a metric with curvature needs it. The likelihoods:

    - ``"gaussian"``: :math:`N(\mu_j, \sigma^2)`, the mean after a sigmoid (data in [0, 1]) or linear;
    - ``"bernoulli"``: pixels on or off, :math:`\mu_j` the probability;
    - ``"poisson"``, ``"negative_binomial"``: counts with :math:`\mu_j = l \operatorname{softmax}_j`, where l is the
      observed total of the sample (in a cell its library size); in ``decoder`` and ``distribution`` it is the median of
      those trained on. The variance is :math:`\mu_j` or :math:`\mu_j + \mu_j^2 / r_j`, with one :math:`r_j` an output
      that does not depend on the code. The encoder gets :math:`\log(1 + x)`.

    Args:
        data_dim: D, length of a flattened sample.
        latent_dim: d, length of a code.
        hidden: Widths of the encoder's hidden layers, at least one.
        likelihood: One of these names.
        output: What ends a Gaussian's mean: ``"sigmoid"`` or ``"linear"``.
        output_std: :math:`\sigma` of a Gaussian, in units of the data; smaller keeps more in the codes.
        shares: Of counts, whether the mean is a share of the total; otherwise :math:`\log \mu_j` is linear.
        generator: Source of the initial weights of a model that is not trained, uniform in
            :math:`\pm 1/\sqrt{\text{inputs}}`; default: torch's global one.

    Attributes:
        decoder: Codes (n, d) to the mean of the data (n, D): what :class:`~pullback.Pullback` takes.
        history: The mean loss of each epoch of the last training.

    Raises:
        ValueError: A width is below one, ``hidden`` is empty, ``likelihood`` or ``output`` unknown, or ``output_std``
            not positive.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), appendix D: widths and activations. :cite:`oddity`
        Lopez, Regier, Cole, Jordan, Yosef (2018): counts. :cite:`scvi`

    Example:
        >>> vae = VAE(784)
        >>> vae.decoder(torch.zeros(5, 2)).shape
        torch.Size([5, 784])
    """

    FORMAT = "pullback.vae"

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 2,
        hidden: Sequence[int] = (64, 32),
        *,
        likelihood: str = "gaussian",
        output: str = "sigmoid",
        output_std: float = 1.0,
        shares: bool = True,
        generator: Generator | None = None,
    ) -> None:
        settings = {"data_dim": data_dim, "latent_dim": latent_dim, "hidden": list(hidden), "likelihood": likelihood}
        super().__init__({**settings, "output": output, "output_std": output_std, "shares": shares})
        check_widths(data_dim, latent_dim, hidden)
        check_output(output)
        last = likelihoods.likelihood(likelihood, data_dim, output=output, output_std=output_std, shares=shares)
        self.data_dim, self.latent_dim = data_dim, latent_dim
        self.trunk = tanh_layers((data_dim, *hidden), generator)
        self.mean = linear(hidden[-1], latent_dim, generator)
        self.std = nn.Sequential(linear(hidden[-1], latent_dim, generator), nn.Softplus())
        self.decoder = decoder_layers(latent_dim, hidden, data_dim, generator, last)

    @property
    def likelihood(self) -> likelihoods.Likelihood:
        """The last module of the decoder: from raw values to mean and distribution."""
        return cast(likelihoods.Likelihood, self.decoder[-1])

    def encode(self, x: Float[Tensor, "n D"]) -> tuple[Points, Points]:
        """Mean and standard deviation of the code of each sample: (n, D) -> (n, d), (n, d)."""
        hidden = self.trunk(self.likelihood.inputs(x))
        return self.mean(hidden), self.std(hidden)

    def sample(self, x: Float[Tensor, "n D"], *, generator: Generator | None = None) -> Points:
        """One code of each sample, drawn from the encoder: (n, D) -> (n, d)."""
        mean, std = self.encode(x)
        return mean + std * noise_like(mean, generator)

    def distribution(self, z: Points, library: Scalars | None = None) -> Distribution:
        """The distribution of the data at codes: what :class:`~pullback.FisherRao` takes.

        Args:
            z: Codes (..., d).
            library: Of counts that are shares, the total of each sample (...); default: the median of those trained on.

        Returns:
            Batch shape (...), event shape (D,): ``distribution(z).log_prob(x)`` has shape (...).
        """
        return self.likelihood.distribution(self.decoder[:-1](z), library)

    def in_units_of(self, shift: Float[Tensor, " D"], scale: Tensor) -> None:
        """Make a model of (x - shift) / scale, with a linear output, the same model of x."""
        take_units(cast(nn.Linear, self.trunk[0]), shift, scale)
        give_units(cast(nn.Linear, self.decoder[-2]), shift, scale)

    def loss(
        self,
        x: Float[Tensor, "n D"],
        *,
        output_std: float | None = None,
        warmup: float = 1.0,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Negative evidence lower bound, in nats; mean over samples.

        .. math::
            -\log p(x | z) + r\, \tfrac12 \sum_i (m_i^2 + s_i^2 - \log s_i^2 - 1), \qquad z = m + s \epsilon

        For a Gaussian the first term is :math:`|x - \mu(z)|^2 / 2 \sigma^2`, without its constants.

        Args:
            x: Samples (n, D).
            output_std: :math:`\sigma` of a Gaussian; default: that of the model.
            warmup: r, weight of the divergence; ramped from 0 to 1 it keeps latent dimensions from collapsing.
            generator: Source of the noise; default: torch's global one.

        Returns:
            A scalar. Cost: one forward pass of encoder and decoder.
        """
        mean, std = self.encode(x)
        z = mean + std * noise_like(mean, generator)
        likelihood = self.likelihood
        if isinstance(likelihood, likelihoods.Gaussian):
            sigma = likelihood.std if output_std is None else output_std
            reconstruction = 0.5 / sigma**2 * (x - self.decoder(z)).square().sum(-1)
        else:
            reconstruction = -self.distribution(z, x.sum(-1)).log_prob(x)
        divergence = 0.5 * (mean.square() + std.square() - 1).sum(-1) - std.log().sum(-1)
        return (reconstruction + warmup * divergence).mean()

    def fit(
        self,
        dataset: Dataset,
        *,
        epochs: int = 100,
        warmup: float = 1 / 3,
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
            dataset: What to learn; for counts whole numbers.
            epochs: Passes over the data.
            warmup: Share of these over which the weight of the divergence rises from 0 to 1.
            batch_size: Samples a step.
            learning_rate: Of Adam.
            seed: Of initial weights, batches and noise; the global random state is not used.
            folder: Gets the checkpoint; None: none is written.
            resume: Go on with what the folder holds. False: begin anew and overwrite it.
            progress: Show a bar on the standard error stream.

        Returns:
            The model itself, in eval mode, with its ``history``.

        Warns:
            CollapseWarning: The codes hardly differ in some latent dimension.

        Raises:
            ValueError: The data hold NaN or inf, cannot have this distribution, do not fit the model or are all the
                same; a setting is out of range; the folder holds another run; the loss becomes NaN or infinite.
            OSError: The folder cannot be written.
            KeyboardInterrupt: Passed on; model and checkpoint are those of the last finished epoch.
        """
        check_samples(dataset)
        check_data_dim(dataset, self.data_dim)
        if not 0 <= warmup <= 1:
            raise ValueError(f"`warmup` is {warmup}: wanted a share of the epochs, from 0 to 1")
        likelihood = self.likelihood
        likelihood.check(dataset)
        standard = isinstance(likelihood, likelihoods.Gaussian) and likelihood.output == "linear"
        shift, scale = standard_units(dataset.samples, "linear" if standard else "sigmoid")
        sigma = likelihood.std / float(scale) if isinstance(likelihood, likelihoods.Gaussian) else None

        def loss(model: VAE, x: Tensor, epoch: int, generator: Generator) -> Tensor:
            weight = warmup_weight(epoch, warmup * epochs)
            return model.loss(x, output_std=sigma, warmup=weight, generator=generator)

        def finish(model: VAE) -> None:
            model.likelihood.keep(dataset)
            if standard:
                model.in_units_of(shift, scale)

        self._fit(
            dataset,
            ((dataset.samples - shift) / scale).to(next(self.parameters())),
            loss,
            finish,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            folder=folder,
            resume=resume,
            progress=progress,
            warmup=warmup,
        )
        warn_of_collapse(
            encoded(lambda x: self.encode(x)[0], dataset.samples.to(next(self.parameters()))).std(0, correction=0),
            COLLAPSED,
            "about 1",
            "train more epochs" if sigma is None else f"set output_std below {likelihood.std:g}, or train more epochs",
        )
        return self


def warmup_weight(epoch: int, ramp: float) -> float:
    """Weight of the divergence in an epoch, counted from 0: it rises from 0 to 1 over ``ramp`` epochs."""
    return min(1.0, epoch / ramp) if ramp else 1.0
