"""A generative adversarial network: a generator that draws from a Gaussian, and a discriminator that judges it."""

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self, cast

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pullback._checks import PullbackWarning
from pullback.datasets import Dataset
from pullback.models.convolutional import coarse_shape, downward, image_shape, upward
from pullback.models.layers import check_output, check_widths, give_units, linear, link, take_units
from pullback.models.likelihoods import check_unit_interval
from pullback.models.loop import check_samples, fingerprint, fit
from pullback.models.model import Model, check_rate, standard_units
from pullback.models.rbf import kmeans
from pullback.types import Points, Scalars

LOSSES = {"non_saturating": (0.3, 1), "wasserstein": (10.0, 3)}  # weight of the penalty, steps of the discriminator
ARCHITECTURES = ("auto", "dense", "convolutional")
_CONVOLUTIONAL = 16  # sides of images from which on "auto" takes convolutions
_MOMENTUM = (0.0, 0.99)  # Adam's; with the usual 0.9 the two parts run after each other in circles
_AVERAGE = 0.99  # weight of the past, at each step, in the generator that is kept
_CELLS, _DRAWN, _LEAST = 20, 2000, 0.5  # coverage: k-means cells, samples, and where the warning begins
_VISITED = 0.2  # share of its due number of samples from which on a cell counts as visited


class ModeCollapseWarning(PullbackWarning):
    """The generated samples are alike: large parts of the data are never generated."""


class GAN(Model):
    r"""A generator of data from Gaussian codes, trained against a discriminator that tells its samples from the data.

    A code :math:`z \sim N(0, I)` becomes a sample :math:`f(z)`. There is no encoder. Every part is smooth (SiLU), as a
    metric with curvature needs it, and without batch norm: each code is decoded on its own. The losses, with
    the discriminator's value h, large for data:

    - ``"non_saturating"``: h lowers
      :math:`\log(1 + e^{-h(x)}) + \log(1 + e^{h(f(z))}) + \tfrac\gamma2 |\nabla h(x)|^2`, f lowers
      :math:`\log(1 + e^{-h(f(z))})`. The penalty, at data, makes the training converge.
    - ``"wasserstein"``: h lowers :math:`h(f(z)) - h(x) + \gamma (|\nabla h(y)| - 1)^2` with y between data and
      generated samples, f lowers :math:`-h(f(z))`.

    Args:
        sample_shape: Of the data: (D,), or that of images, (h, w) or (c, h, w).
        latent_dim: d, length of a code.
        hidden: Widths of the discriminator's hidden layers, where it is dense; the generator has them reversed.
        loss: One of these names.
        output: What ends the generator: ``"sigmoid"`` (data in [0, 1]) or ``"linear"`` (any, dense alone).
        architecture: ``"dense"``, ``"convolutional"`` (images with sides that are multiples of 4), or ``"auto"``:
            convolutional for such images of at least 16 x 16.
        generator: Source of random numbers for the initial weights of a model that is not trained; default: torch's
            global one.

    Attributes:
        generator: f: codes (n, d) to samples (n, D), flattened; what :class:`~pullback.Pullback` takes.
        discriminator: h: samples (n, D) to a value each (n,).
        history: The mean losses of each epoch of the last training, of ``"generator"`` and ``"discriminator"``, the
            latter without the penalty. At a standstill of the non-saturating kind they are about 0.7 and 1.4.

    Raises:
        ValueError: A shape or width is below one, a name is unknown, or the architecture does not fit the data.

    Reference:
        Goodfellow et al. (2014) :cite:`gan`; Mescheder, Geiger, Nowozin (2018) :cite:`ganconvergence`; Gulrajani et al.
        (2017) :cite:`wgangp`.

    Example:
        >>> gan = GAN((28, 28))
        >>> metric = pb.Pullback(gan.generator)
        >>> metric.matrix(torch.zeros(5, 2)).shape
        torch.Size([5, 2, 2])
    """

    FORMAT = "pullback.gan"

    def __init__(
        self,
        sample_shape: Sequence[int],
        latent_dim: int = 2,
        hidden: Sequence[int] = (128, 64),
        *,
        loss: str = "non_saturating",
        output: str = "sigmoid",
        architecture: str = "auto",
        generator: Generator | None = None,
    ) -> None:
        shape = tuple(sample_shape)
        for name, value, known in (("loss", loss, tuple(LOSSES)), ("architecture", architecture, ARCHITECTURES)):
            if value not in known:
                raise ValueError(f"`{name}` is {value!r}: wanted one of {', '.join(known)}")
        if not shape or min(shape) < 1:
            raise ValueError(f"`sample_shape` is {shape}: wanted (D,), (height, width) or (channels, height, width)")
        data_dim = math.prod(shape)
        check_widths(data_dim, latent_dim, hidden)
        check_output(output)
        if architecture == "auto":
            fits = len(shape) in (2, 3) and all(side >= _CONVOLUTIONAL and side % 4 == 0 for side in shape[-2:])
            architecture = "convolutional" if fits and output == "sigmoid" else "dense"
        elif architecture == "convolutional" and output == "linear":
            raise ValueError("`output` is 'linear': convolutions end in a sigmoid; scale the images to [0, 1]")
        settings = {"sample_shape": list(shape), "latent_dim": latent_dim, "hidden": list(hidden), "loss": loss}
        super().__init__({**settings, "output": output, "architecture": architecture})
        self.sample_shape, self.latent_dim, self.output = shape, latent_dim, output
        if architecture == "convolutional":
            image = image_shape(shape)
            self.generator = upward(latent_dim, image, generator)
            self.discriminator = downward(image, generator)
            n_features = math.prod(coarse_shape(image))
        else:
            self.generator = _dense((latent_dim, *reversed(hidden)), generator)
            self.generator.append(linear(hidden[0], data_dim, generator))
            if (last := link(output)) is not None:
                self.generator.append(last)
            self.discriminator = _dense((data_dim, *hidden), generator)
            n_features = hidden[-1]
        self.discriminator.append(linear(n_features, 1, generator)).append(nn.Flatten(0))

    def sample(self, n: int, *, generator: Generator | None = None) -> tuple[Points, Float[Tensor, "n D"]]:
        """Codes drawn from the prior and the samples made of them: (n, d), (n, D).

        Args:
            n: How many.
            generator: Source of random numbers, on the CPU; default: torch's global one.
        """
        z = self._codes(n, generator)
        with torch.no_grad():
            return z, self.generator(z)

    def coverage(self, samples: Float[Tensor, "m D"], *, seed: int = 0) -> float:
        """Share of the regions of the data that generated samples visit, from 0 to 1.

        The regions are 20 k-means cells of the data; one is visited where at least a fifth of its due number out of
        2000 generated samples fall. Below 1/2 the generator has collapsed. It tells what is missing, not how good the
        samples are.

        Args:
            samples: Data x (m, D), of which at most 2000 are taken.
            seed: Of codes and k-means.

        Raises:
            ValueError: Fewer than two different samples.
        """
        x = samples[torch.arange(min(_DRAWN, len(samples))) * len(samples) // min(_DRAWN, len(samples))]
        x = x.to(next(self.parameters()))
        n_cells = min(_CELLS, len(torch.unique(x, dim=0)))
        if n_cells < 2:
            raise ValueError("`samples` are all the same: coverage wants different ones")
        centers, members = kmeans(x, n_cells, random_state=seed)
        _, drawn = self.sample(_DRAWN, generator=Generator().manual_seed(seed))
        found = torch.cdist(drawn, centers).argmin(1).bincount(minlength=n_cells) / _DRAWN
        due = members.bincount(minlength=n_cells) / len(x)
        return float((found >= _VISITED * due).double().mean())

    def discriminator_loss(
        self, x: Float[Tensor, "n D"], drawn: Float[Tensor, "n D"], penalty: float, generator: Generator | None = None
    ) -> tuple[Scalars, Scalars]:
        """The loss of the discriminator for data and as many generated samples, and the penalty that is added to it."""
        if self.settings["loss"] == "wasserstein":
            share = torch.rand(len(x), 1, generator=generator, dtype=x.dtype, device="cpu").to(x.device)
            between = (share * x + (1 - share) * drawn).detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.discriminator(between).sum(), between, create_graph=True)
            steepness = (slope.square().sum(1) + 1e-12).sqrt()  # smooth where the slope vanishes
            loss = self.discriminator(drawn).mean() - self.discriminator(x).mean()
            return loss, penalty * (steepness - 1).square().mean()
        x = x.detach().requires_grad_()
        real = self.discriminator(x)
        (slope,) = torch.autograd.grad(real.sum(), x, create_graph=True)
        loss = F.softplus(-real).mean() + F.softplus(self.discriminator(drawn)).mean()
        return loss, penalty / 2 * slope.square().sum(1).mean()

    def generator_loss(self, z: Points) -> Scalars:
        """The loss of the generator for codes (n, d)."""
        value = self.discriminator(self.generator(z))
        return -value.mean() if self.settings["loss"] == "wasserstein" else F.softplus(-value).mean()

    def fit(
        self,
        dataset: Dataset,
        *,
        epochs: int = 100,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        penalty: float | None = None,
        discriminator_steps: int | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        resume: bool = True,
        progress: bool = False,
    ) -> Self:
        """Train both parts by Adam from fresh weights, or go on with a training that was interrupted.

        The generator that is left is the moving average of that of the last hundred steps or so, which is much steadier
        than the last one. A resumed training ends with the same weights, bit for bit, as one that was never
        interrupted. With a linear output the data are trained on in standard units.

        Args:
            dataset: What to generate.
            epochs: Passes over the data. Count the steps: a thousand are little.
            batch_size: Samples a step.
            learning_rate: Of Adam.
            penalty: Weight of the gradient penalty; default: 0.3 for non-saturating, 10 for Wasserstein.
            discriminator_steps: Steps of the discriminator to one of the generator, on the same data with fresh codes;
                default: 1 for non-saturating, 3 for Wasserstein.
            seed: Of initial weights, batches and codes; the global random state is not used.
            folder: Gets the checkpoint; None: none is written.
            resume: Go on with what the folder holds. False: begin anew and overwrite it.
            progress: Show a bar on the standard error stream, with the sum of both losses.

        Returns:
            The model itself, in eval mode, with its ``history``.

        Warns:
            ModeCollapseWarning: :meth:`coverage` is below 1/2.

        Raises:
            ValueError: The data hold NaN or inf, do not fit the model or are all the same; a setting is out of range;
                the folder holds another run; a loss becomes NaN or infinite.
            OSError: The folder cannot be written.
            KeyboardInterrupt: Passed on; model and checkpoint are those of the last finished epoch.
        """
        check_rate(learning_rate)
        usual = LOSSES[self.settings["loss"]]
        penalty = usual[0] if penalty is None else penalty
        n_steps = usual[1] if discriminator_steps is None else discriminator_steps
        if not 0 <= penalty < math.inf:
            raise ValueError(f"`penalty` is {penalty!r}: wanted a finite number of at least 0")
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
            raise ValueError(f"`discriminator_steps` is {n_steps!r}: wanted a whole number of at least 1")
        self._check(dataset)
        shift, scale = standard_units(dataset.samples, self.output)
        rival = _Rivalry(self, epochs, learning_rate, penalty, n_steps, seed)
        training = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "penalty": penalty}
        training["discriminator_steps"] = n_steps
        run = {"settings": self.settings, "training": training, "seed": seed, "dataset": fingerprint(dataset)}
        try:
            fit(
                ((dataset.samples - shift) / scale).to(next(self.parameters())),
                rival.step,
                modules={"model": rival.model, "average": rival.average, "losses": rival.losses},
                optimizers={"generator": rival.adam, "discriminator": rival.rival_adam},
                generator=rival.generator,
                epochs=epochs,
                batch_size=batch_size,
                run={"model": self.FORMAT, **run},
                folder=folder,
                resume=resume,
                progress=progress,
            )
        finally:
            if rival.adam.state:
                self.load_state_dict(rival.finished(shift, scale).state_dict())
                self.history, self.run = rival.losses.history(), run
                self.eval()
        self._warn_of_collapse(dataset)
        return self

    def _codes(self, n: int, generator: Generator | None) -> Points:
        like = next(self.parameters())
        return torch.randn(n, self.latent_dim, generator=generator, dtype=like.dtype, device="cpu").to(like.device)

    def _check(self, dataset: Dataset) -> None:
        check_samples(dataset)
        if dataset.sample_shape != self.sample_shape:
            raise ValueError(
                f"`dataset` has samples of shape {dataset.sample_shape}, but the model makes {self.sample_shape}: "
                f"make it with sample_shape={dataset.sample_shape}"
            )
        if self.output == "sigmoid":
            check_unit_interval(dataset, "a sigmoid only", "set output to 'linear'")

    def _warn_of_collapse(self, dataset: Dataset) -> None:
        if (share := self.coverage(dataset.samples)) < _LEAST:
            warnings.warn(
                f"the generated samples hardly differ: they visit {share:.0%} of the regions of the data, see "
                "`coverage`; train more epochs, lower the learning_rate, or raise the penalty",
                ModeCollapseWarning,
                stacklevel=3,
            )


class _Rivalry:
    """What changes while the two parts are trained, on a twin: until its first step nothing of the model changes."""

    def __init__(
        self, model: GAN, epochs: int, learning_rate: float, penalty: float, discriminator_steps: int, seed: int
    ) -> None:
        like = next(model.parameters())
        self.generator = Generator().manual_seed(seed)
        self.model = type(model)._from_settings(model.settings, self.generator).to(like)
        self.average = AveragedModel(self.model.generator, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE))
        self.losses = _Losses(epochs if isinstance(epochs, int) and epochs > 0 else 0)  # `loop.fit` refuses others
        self.adam, self.rival_adam = (
            torch.optim.Adam(part.parameters(), lr=learning_rate, betas=_MOMENTUM)
            for part in (self.model.generator, self.model.discriminator)
        )
        self.penalty, self.discriminator_steps = penalty, discriminator_steps

    def step(self, x: Tensor, epoch: int) -> float:
        model = self.model
        judged = 0.0
        for _ in range(self.discriminator_steps):
            _, drawn = model.sample(len(x), generator=self.generator)
            self.rival_adam.zero_grad()
            loss, penalty = model.discriminator_loss(x, drawn, self.penalty, self.generator)
            (loss + penalty).backward()
            self.rival_adam.step()
            judged += loss.item() / self.discriminator_steps
        self.adam.zero_grad()
        loss = model.generator_loss(model._codes(len(x), self.generator))
        loss.backward(inputs=list(model.generator.parameters()))
        self.adam.step()
        self.average.update_parameters(model.generator)
        self.losses.add(epoch, len(x), loss.item(), judged)
        return loss.item() + judged

    def finished(self, shift: Tensor, scale: Tensor) -> GAN:
        """The twin with the averaged generator, in the units of the data."""
        self.model.generator.load_state_dict(self.average.module.state_dict())
        if self.model.output == "linear":
            take_units(cast(nn.Linear, self.model.discriminator[0]), shift, scale)
            give_units(cast(nn.Linear, self.model.generator[-1]), shift, scale)
        return self.model


class _Losses(nn.Module):
    """Sums of both losses over the samples of each epoch, and their number: a module, so that checkpoints hold them."""

    sums: Tensor

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(epochs, 3, dtype=torch.float64, device="cpu"))

    def add(self, epoch: int, n: int, generator: float, discriminator: float) -> None:
        self.sums[epoch] += torch.tensor([n * generator, n * discriminator, n], dtype=torch.float64, device="cpu")

    def history(self) -> dict[str, list[float]]:
        done = self.sums[self.sums[:, 2] > 0]
        means = done[:, :2] / done[:, 2:]
        return {"generator": means[:, 0].tolist(), "discriminator": means[:, 1].tolist()}


def _dense(widths: Sequence[int], generator: Generator | None) -> nn.Sequential:
    layers = nn.Sequential()
    for inputs, outputs in pairwise(widths):
        layers.append(linear(inputs, outputs, generator)).append(nn.SiLU())
    return layers
