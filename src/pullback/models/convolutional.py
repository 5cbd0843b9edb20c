"""Models of images: convolutions down to a code and up again, and a precision that goes up with them."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from pullback.datasets import Dataset
from pullback.decoders import Gaussian
from pullback.models.layers import linear, noise_like
from pullback.models.likelihoods import check_unit_interval
from pullback.models.loop import check_samples, fingerprint, fit
from pullback.models.model import Model, check_rate, encoded, warn_of_collapse
from pullback.models.rbf import RBFPrecision
from pullback.models.vae import COLLAPSED, warmup_weight
from pullback.types import Features, Points

Image = tuple[int, int, int]  # channels, height, width
_CHANNELS = (16, 32)  # after the first and the second convolution; each halves height and width
_HIDDEN = 128  # width of the layer between a code and the coarsest image
_SHARE = 0.1  # of its own size that a filter of the precision may change by in one step, at rate 1


def image_shape(sample_shape: Sequence[int]) -> Image:
    """Channels, height and width of samples (h, w) or (c, h, w).

    Raises:
        ValueError: The samples are no images, or their sides cannot be halved twice.
    """
    shape = tuple(sample_shape)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(
            f"`sample_shape` is {shape}: wanted that of images, (height, width) or (channels, height, width)"
        )
    c, h, w = (1, *shape) if len(shape) == 2 else shape
    if h % 4 or w % 4:
        raise ValueError(
            f"`sample_shape` is {shape}: height and width are halved twice, so wanted multiples of 4; pad the images"
        )
    return c, h, w


def coarse_shape(image: Image) -> Image:
    """Channels, height and width after both convolutions."""
    return _CHANNELS[1], image[1] // 4, image[2] // 4


def downward(image: Image, generator: Generator | None) -> nn.Sequential:
    """Flat images (n, D) to features (n, 32 h/4 w/4), smooth."""
    layers = nn.Sequential(nn.Unflatten(1, image))
    for inputs, outputs in ((image[0], _CHANNELS[0]), _CHANNELS):
        layers.append(_halving(nn.Conv2d, inputs, outputs, generator)).append(nn.SiLU())
    return layers.append(nn.Flatten())


def upward(latent_dim: int, image: Image, generator: Generator | None) -> nn.Sequential:
    """Codes (n, d) to flat images (n, D) between 0 and 1, smooth."""
    coarse = coarse_shape(image)
    return nn.Sequential(
        linear(latent_dim, _HIDDEN, generator),
        nn.SiLU(),
        linear(_HIDDEN, math.prod(coarse), generator),
        nn.SiLU(),
        nn.Unflatten(1, coarse),
        _halving(nn.ConvTranspose2d, _CHANNELS[1], _CHANNELS[0], generator),
        nn.SiLU(),
        _halving(nn.ConvTranspose2d, _CHANNELS[0], image[0], generator),
        nn.Flatten(),
        nn.Sigmoid(),
    )


def _halving(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], inputs: int, outputs: int, generator: Generator | None
) -> nn.Module:
    """A convolution that halves height and width, or a transposed one that doubles them.

    Every output that is not at the rim has the same number of inputs: no checkerboard. The initial weights come from
    the generator alone.
    """
    layer = kind(inputs, outputs, 4, 2, 1, device="meta")  # no storage, so nothing is drawn for it
    bound = (inputs * (16 if kind is nn.Conv2d else 4)) ** -0.5
    for name, parameter in list(layer.named_parameters()):
        initial = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
        setattr(layer, name, nn.Parameter(initial.uniform_(-bound, bound, generator=generator)))
    return layer


class ConvolutionalPrecision(RBFPrecision):
    r"""Standard deviation of the pixels of images, from a precision that dies off away from the centers.

    .. math::
        \sigma(z) = \beta(z)^{-1/2}, \qquad \beta(z) = T_2 T_1 W v(z) + \zeta, \qquad
        v_k(z) = e^{-\lambda_k |z - c_k|^2}, \qquad W, T_1, T_2 \ge 0

    W leads to a coarse image of 32 channels, and the transposed convolutions :math:`T_1, T_2` double its height and
    width. They have no biases and nothing between them: where the kernels vanish, so does all but :math:`\zeta`.
    Neighboring pixels share their precision, and there are fewer parameters than with one row of W for each pixel.

    Args:
        centers: c (K, d).
        bandwidths: :math:`\lambda` (K,), in units of inverse squared latent length, all positive.
        sample_shape: (h, w) or (c, h, w), sides multiples of 4.
        zeta: Smallest precision.
        generator: Source of the initial filters, which average up to 50%; default: torch's global one.

    Attributes:
        weight: W (32 h/4 w/4, K), initially 1.
        up: The transposed convolutions; :meth:`project` keeps their filters and W non-negative.

    Raises:
        ValueError: Shapes do not fit, or a bandwidth or ``zeta`` is not positive and finite.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), section 4 and appendix D. :cite:`oddity`

    Example:
        >>> rbf = ConvolutionalPrecision(torch.zeros(1, 2), torch.ones(1), (8, 8))
        >>> near, far = rbf(torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64))[:, 0]
        >>> bool(far > 80 * near)
        True
    """

    def __init__(
        self,
        centers: Float[Tensor, "K d"],
        bandwidths: Float[Tensor, " K"],
        sample_shape: Sequence[int],
        *,
        zeta: float = 1e-10,
        generator: Generator | None = None,
    ) -> None:
        image = image_shape(sample_shape)
        coarse = coarse_shape(image)
        super().__init__(centers, bandwidths, math.prod(coarse), zeta=zeta)
        self.up = nn.Sequential(nn.Unflatten(1, coarse))
        for inputs, outputs in (tuple(reversed(_CHANNELS)), (_CHANNELS[0], image[0])):
            layer = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False, device="meta")
            initial = torch.empty(layer.weight.shape, dtype=torch.float64, device="cpu")
            initial = initial.uniform_(0.5, 1.5, generator=generator) / (4 * inputs)  # means of 4 pixels, all channels
            layer.weight = nn.Parameter(initial.to(centers.device))
            self.up.append(layer)
        self.up.append(nn.Flatten())

    def precision(self, z: Points) -> Features:
        r""":math:`\beta(z) = 1 / \sigma(z)^2`: (..., d) -> (..., D)."""
        coarse = F.linear(self.kernels(z.reshape(-1, z.shape[-1])), self.weight)
        return (self.up(coarse) + self.zeta).reshape(*z.shape[:-1], -1)

    def project(self) -> None:
        """Set negative weights and filter entries to zero: the projection after each step of a projected gradient."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.clamp_(min=0)

    def optimizer(self, learning_rate: float, weight_decay: float) -> Optimizer:
        """Adam whose rate for the filters is in proportion to their size, which falls with the number of channels."""
        filters = [
            {"params": [p], "lr": _SHARE * learning_rate * float(p.detach().mean()), "weight_decay": 0.0}
            for p in self.up.parameters()
        ]
        weights = {"params": [self.weight], "lr": learning_rate, "weight_decay": weight_decay}
        return torch.optim.Adam([weights, *filters])


class ConvolutionalVAE(Model):
    r"""A variational autoencoder of images with a variance that grows away from the data.

    Encoder: two convolutions that halve height and width, then mean :math:`m(x)` (linear) and standard deviation
    :math:`s(x)` (softplus) of the code. Decoder: the mean by transposed convolutions and a sigmoid, the standard
    deviation by :class:`ConvolutionalPrecision`. Every part is smooth (SiLU), as a metric with curvature needs it. In
    float64: the kernels vanish close to the data in float32.

    Args:
        sample_shape: Of the images, (h, w) or (c, h, w), sides multiples of 4, such as (28, 28) or (3, 32, 32).
        latent_dim: d, length of a code.
        output_std: Standard deviation of the pixels while encoder and mean are trained; smaller keeps more in the
            codes.
        n_centers: K, number of radial basis functions.
        bandwidth: a, scale of their widths; larger is smoother.
        zeta: Smallest precision.
        generator: Source of the initial weights of a model that is not trained; default: torch's global one.

    Attributes:
        decoder: :class:`~pullback.Gaussian`: codes (n, d) to mean and standard deviation (n, 2D).
        history: The mean loss of each epoch of the last training: of ``"mean"`` and of ``"precision"``.

    Raises:
        ValueError: The samples are no images, or a setting is out of range.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), section 4 and appendix D; its layers are not published, these are ours.
        :cite:`oddity`

    Example:
        >>> model = ConvolutionalVAE((28, 28))
        >>> metric = pb.Pullback(model.decoder)     # the expected metric of the decoder
        >>> metric.matrix(torch.zeros(5, 2, dtype=torch.float64)).shape
        torch.Size([5, 2, 2])
    """

    FORMAT = "pullback.convolutionalvae"

    def __init__(
        self,
        sample_shape: Sequence[int],
        latent_dim: int = 2,
        *,
        output_std: float = 0.5,
        n_centers: int = 64,
        bandwidth: float = 2.0,
        zeta: float = 1e-10,
        generator: Generator | None = None,
    ) -> None:
        settings = {"sample_shape": list(sample_shape), "latent_dim": latent_dim, "output_std": output_std}
        super().__init__({**settings, "n_centers": n_centers, "bandwidth": bandwidth, "zeta": zeta})
        image = image_shape(sample_shape)
        if min(latent_dim, n_centers) < 1:
            raise ValueError(f"`latent_dim`, `n_centers` are {latent_dim}, {n_centers}: wanted at least 1 of each")
        for name, value in (("output_std", output_std), ("bandwidth", bandwidth), ("zeta", zeta)):
            if not 0 < value < math.inf:
                raise ValueError(f"`{name}` is {value!r}: wanted a positive, finite number")
        self.sample_shape, self.latent_dim = tuple(sample_shape), latent_dim
        n_features = math.prod(coarse_shape(image))
        self.trunk = downward(image, generator)
        self.mean = linear(n_features, latent_dim, generator)
        self.std = nn.Sequential(linear(n_features, latent_dim, generator), nn.Softplus())
        # the centers lie at 0 until `fit` knows the codes
        centers, widths = torch.zeros(n_centers, latent_dim), torch.ones(n_centers)
        precision = ConvolutionalPrecision(centers, widths, self.sample_shape, zeta=zeta, generator=generator)
        self.decoder = Gaussian(upward(latent_dim, image, generator), precision)
        self.double()

    @property
    def precision(self) -> ConvolutionalPrecision:
        """The part of the decoder that gives the standard deviation."""
        return cast(ConvolutionalPrecision, self.decoder.std)

    def encode(self, x: Float[Tensor, "n D"]) -> tuple[Points, Points]:
        """Mean and standard deviation of the code of each sample: (n, D) -> (n, d), (n, d)."""
        hidden = self.trunk(x.to(self.mean.weight))
        return self.mean(hidden), self.std(hidden)

    def sample(self, x: Float[Tensor, "n D"], *, generator: Generator | None = None) -> Points:
        """One code of each sample, drawn from the encoder: (n, D) -> (n, d)."""
        mean, std = self.encode(x)
        return mean + std * noise_like(mean, generator)

    def mean_loss(self, x: Float[Tensor, "n D"], *, warmup: float = 1.0, generator: Generator | None = None) -> Tensor:
        r"""Negative evidence lower bound with constant variance, in nats, constants dropped; mean over samples.

        .. math:: \frac{|x - \mu(z)|^2}{2 \sigma^2} + r\, \tfrac12 \sum_i (m_i^2 + s_i^2 - \log s_i^2 - 1)

        Args:
            x: Samples (n, D).
            warmup: r, weight of the divergence.
            generator: Source of the noise; default: torch's global one.

        Returns:
            A scalar. Cost: one forward pass of encoder and mean.
        """
        mean, std = self.encode(x)
        z = mean + std * noise_like(mean, generator)
        reconstruction = 0.5 / self.settings["output_std"] ** 2 * (x - self._mean(z)).square().sum(-1)
        divergence = 0.5 * (mean.square() + std.square() - 1).sum(-1) - std.log().sum(-1)
        return (reconstruction + warmup * divergence).mean()

    def precision_loss(self, x: Float[Tensor, "n D"], *, generator: Generator | None = None) -> Tensor:
        """:meth:`RBFPrecision.loss` at codes drawn from the encoder; it and the mean get no gradient."""
        with torch.no_grad():
            z = self.sample(x, generator=generator)
            residual = (x - self._mean(z)).double()
        return self.precision.loss(z.double(), residual)

    def fit(
        self,
        dataset: Dataset,
        *,
        epochs: int = 60,
        precision_epochs: int = 30,
        warmup: float = 1 / 3,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        precision_learning_rate: float = 1.0,
        weight_decay: float = 1e-5,
        seed: int = 0,
        folder: str | Path | None = None,
        resume: bool = True,
        progress: bool = False,
    ) -> Self:
        """Train by Adam from fresh weights, or go on with a training that was interrupted.

        First encoder and mean with constant variance, in float32, then, with these frozen, the precision by a projected
        gradient, its centers placed by k-means on the codes. A resumed training ends with the same weights, bit for
        bit, as one that was never interrupted.

        Args:
            dataset: Images in [0, 1].
            epochs: Passes over the data for encoder and mean.
            precision_epochs: Passes over the data for the precision.
            warmup: Share of the former over which the weight of the divergence rises from 0 to 1.
            batch_size: Samples a step.
            learning_rate: Of Adam, for encoder and mean.
            precision_learning_rate: Of Adam, for the weights of the precision; its filters follow in proportion.
            weight_decay: L2 penalty on the weights of the precision, not on its filters.
            seed: Of initial weights, batches, noise and k-means; the global random state is not used.
            folder: Gets a checkpoint of each stage, in ``mean`` and ``precision``; None: none is written.
            resume: Go on with what the folder holds. False: begin anew and overwrite it.
            progress: Show bars on the standard error stream.

        Returns:
            The model itself, in eval mode, with its ``history``.

        Warns:
            CollapseWarning: The codes hardly differ in some latent dimension.

        Raises:
            ValueError: The data hold NaN or inf, are not in [0, 1], not of the shape that the model takes, or all the
                same; a setting is out of range; the folder holds another run; the loss becomes NaN or infinite.
            OSError: The folder cannot be written.
            KeyboardInterrupt: Passed on; model and checkpoint are those of the last finished epoch.
        """
        self._check(dataset, (learning_rate, precision_learning_rate), warmup)
        generator = Generator().manual_seed(seed)
        twin = self._from_settings(self.settings, generator)  # until its first step nothing of this model changes
        first = [*twin.trunk.parameters(), *twin.mean.parameters(), *twin.std.parameters(), *twin._mean.parameters()]
        for parameter in first:
            parameter.data = parameter.data.float()
        training = {"batch_size": batch_size, "learning_rate": learning_rate, "epochs": epochs, "warmup": warmup}
        run = {"settings": self.settings, "seed": seed, "dataset": fingerprint(dataset), "training": training}
        rest = {"learning_rate": precision_learning_rate, "epochs": precision_epochs, "weight_decay": weight_decay}
        history: dict[str, list[float]] = {"mean": [], "precision": []}
        adam = torch.optim.Adam(first, lr=learning_rate)
        shared: dict[str, Any] = {"modules": {"model": twin}, "generator": generator, "batch_size": batch_size}
        shared |= {"resume": resume, "progress": progress}

        def mean_step(x: Tensor, epoch: int) -> float:
            weight = warmup_weight(epoch, warmup * epochs)
            return _descend(adam, twin.mean_loss(x, warmup=weight, generator=generator))

        def precision_step(x: Tensor, epoch: int) -> float:
            loss = _descend(precision_adam, twin.precision_loss(x, generator=generator))
            twin.precision.project()
            return loss

        def stage(name: str, step: Callable[[Tensor, int], float], optimizer: Optimizer, n: int, record: Any) -> None:
            place = None if folder is None else Path(folder) / name
            record = {"model": self.FORMAT, **record}
            history[name] = fit(
                dataset.samples, step, optimizers={name: optimizer}, epochs=n, run=record, folder=place, **shared
            )

        try:
            stage("mean", mean_step, adam, epochs, run)
            codes = encoded(lambda x: twin.encode(x)[0], dataset.samples).double()
            remedy = f"set output_std below {self.settings['output_std']:g}, or train more epochs"
            warn_of_collapse(codes.std(0, correction=0), COLLAPSED, "about 1", remedy)
            twin.precision.place(codes, a=self.settings["bandwidth"], random_state=seed)
            precision_adam = twin.precision.optimizer(precision_learning_rate, weight_decay)
            run = {**run, "precision": rest}
            stage("precision", precision_step, precision_adam, precision_epochs, run)
        finally:
            if adam.state:
                self.load_state_dict(twin.double().state_dict())
                self.history, self.run = history, run
                self.eval()
        return self

    @property
    def _mean(self) -> nn.Module:
        return cast(nn.Module, self.decoder.mean)

    def _check(self, dataset: Dataset, rates: Sequence[float], warmup: float) -> None:
        check_samples(dataset)
        if dataset.sample_shape != self.sample_shape:
            raise ValueError(
                f"`dataset` has samples of shape {dataset.sample_shape}, but the model takes {self.sample_shape}: "
                f"make it with sample_shape={dataset.sample_shape}"
            )
        check_unit_interval(dataset, "a sigmoid only", "divide them by their largest value")
        if self.settings["n_centers"] > len(dataset):
            raise ValueError(
                f"`dataset` has {len(dataset)} samples, but `n_centers` is {self.settings['n_centers']}: "
                f"set n_centers to at most {len(dataset)}"
            )
        for rate in rates:
            check_rate(rate)
        if not 0 <= warmup <= 1:
            raise ValueError(f"`warmup` is {warmup}: wanted a share of the epochs, from 0 to 1")


def _descend(optimizer: Optimizer, loss: Tensor) -> float:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
