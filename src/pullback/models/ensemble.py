"""Several decoders of the same codes: where they differ, the data do not say how the surface goes on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Generator, Tensor, nn

from pullback.datasets import Dataset
from pullback.models.layers import (
    check_output,
    check_widths,
    decoder_layers,
    give_units,
    link,
    noise_like,
    take_units,
)
from pullback.models.likelihoods import check_unit_interval
from pullback.models.loop import check_samples, sha256
from pullback.models.model import Model, check_data_dim, standard_units
from pullback.types import Points


class DecoderEnsemble(Model):
    r"""Decoders of one architecture that differ in their initial weights and in the order of what they saw.

    Each has tanh layers of the widths ``hidden`` reversed, then a sigmoid (data in [0, 1]) or nothing.

    Args:
        data_dim: D, length of a flattened sample.
        latent_dim: d, length of a code.
        hidden: Widths of the hidden layers as an encoder has them, at least one.
        members: S, number of decoders.
        output: ``"sigmoid"`` or ``"linear"``: what ends the decoders.
        generator: Source of the initial weights of decoders that are not trained; default: torch's global one.

    Attributes:
        decoders: The members, each from codes (n, d) to data (n, D).
        history: The mean loss of each epoch of the last training.

    Raises:
        ValueError: A width or ``members`` is below one, ``hidden`` is empty or ``output`` unknown.

    Reference:
        Syrota, Moreno-Munoz, Hauberg (2024), Decoder ensembling for learned latent geometries. :cite:`ensembling`

    Example:
        >>> data = pb.datasets.digits()
        >>> encoder = Autoencoder(64).fit(data, epochs=2)
        >>> codes = encoder.encode(data.samples)
        >>> ensemble = DecoderEnsemble(64, members=3).fit(data, codes, epochs=2)
        >>> metric = pb.Pullback(pb.Ensemble(ensemble.decoders))     # larger where the members disagree
    """

    FORMAT = "pullback.decoderensemble"

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 2,
        hidden: Sequence[int] = (64, 32),
        *,
        members: int = 8,
        output: str = "sigmoid",
        generator: Generator | None = None,
    ) -> None:
        settings = {"data_dim": data_dim, "latent_dim": latent_dim, "hidden": list(hidden)}
        super().__init__({**settings, "members": members, "output": output})
        check_widths(data_dim, latent_dim, hidden)
        check_output(output)
        if members < 1:
            raise ValueError(f"`members` is {members}: wanted at least 1 decoder")
        self.data_dim, self.latent_dim, self.output = data_dim, latent_dim, output
        self.decoders = nn.ModuleList(
            decoder_layers(latent_dim, hidden, data_dim, generator, link(output)) for _ in range(members)
        )

    def fit(
        self,
        dataset: Dataset,
        codes: Points,
        spread: Points | None = None,
        *,
        bootstrap: bool = False,
        epochs: int = 100,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        seed: int = 0,
        folder: str | Path | None = None,
        resume: bool = True,
        progress: bool = False,
    ) -> Self:
        """Train the members side by side, each from its own weights in its own order, by the mean squared error.

        The encoder that gave the codes does not change. A resumed training ends with the same weights, bit for bit, as
        one that was never interrupted.

        Args:
            dataset: What to decode to.
            codes: Of each sample (n, d): ``autoencoder.encode(x)``, or the means of a VAE.
            spread: Standard deviation of each code (n, d); then codes are drawn anew in each step, for each member. So
                for a VAE: ``fit(dataset, *vae.encode(dataset.samples))``.
            bootstrap: Each member sees n samples drawn with replacement, instead of all.
            epochs: Passes over the data.
            batch_size: Samples a step and member.
            learning_rate: Of Adam.
            seed: Of initial weights, batches and noise; the global random state is not used.
            folder: Gets the checkpoint; None: none is written.
            resume: Go on with what the folder holds. False: begin anew and overwrite it.
            progress: Show a bar on the standard error stream.

        Returns:
            The ensemble itself, in eval mode, with its ``history``.

        Raises:
            ValueError: Codes do not fit the data or the members, or are not finite; else as for
                :meth:`Autoencoder.fit <pullback.models.Autoencoder.fit>`.
            OSError: The folder cannot be written.
            KeyboardInterrupt: Passed on; members and checkpoint are those of the last finished epoch.
        """
        check_samples(dataset)
        check_data_dim(dataset, self.data_dim)
        if self.output == "sigmoid":
            check_unit_interval(dataset, "a sigmoid only", "set output to 'linear'")
        self._check_codes(dataset, codes, spread)
        like = next(self.parameters())
        shift, scale = standard_units(dataset.samples, self.output)
        code_shift, code_scale = standard_units(codes.detach(), "linear")
        x = ((dataset.samples - shift) / scale).to(like)
        z = ((codes.detach() - code_shift) / code_scale).to(like)
        s = None if spread is None else (spread.detach() / code_scale).to(like)
        orders = self._orders(len(x), seed, bootstrap).to(like.device)

        def loss(model: DecoderEnsemble, rows: Tensor, epoch: int, generator: Generator) -> Tensor:
            total = x.new_zeros(())
            for decoder, order in zip(model.decoders, orders, strict=True):
                own = order[rows]
                points = z[own] if s is None else z[own] + s[own] * noise_like(s[own], generator)
                total = total + (decoder(points) - x[own]).square().mean()
            return total / len(orders)

        def finish(model: DecoderEnsemble) -> None:
            model._in_units_of((code_shift, code_scale), (shift, scale))

        self._fit(
            dataset,
            torch.arange(len(x), device=like.device),
            loss,
            finish,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            folder=folder,
            resume=resume,
            progress=progress,
            bootstrap=bootstrap,
            codes=sha256(codes),
            spread=None if spread is None else sha256(spread),
        )
        return self

    def _in_units_of(self, codes: tuple[Tensor, Tensor], data: tuple[Tensor, Tensor]) -> None:
        """Make decoders of codes and data in the units of a training, a shift and a scale each, the same of both."""
        for decoder in self.decoders:
            layers = [layer for layer in decoder.modules() if isinstance(layer, nn.Linear)]
            take_units(layers[0], *codes)
            if self.output == "linear":
                give_units(layers[-1], *data)

    def _orders(self, n: int, seed: int, bootstrap: bool) -> Tensor:
        """The sample that each member sees where the loop says k: (S, n). A random batch stays one, but is its own."""
        generator = Generator().manual_seed(seed)
        if bootstrap:
            return torch.randint(n, (len(self.decoders), n), generator=generator, device="cpu")
        return torch.stack([torch.randperm(n, generator=generator, device="cpu") for _ in self.decoders])

    def _check_codes(self, dataset: Dataset, codes: Tensor, spread: Tensor | None) -> None:
        wanted = (len(dataset), self.latent_dim)
        for name, value in (("codes", codes), ("spread", spread)):
            if value is not None and tuple(value.shape) != wanted:
                raise ValueError(f"`{name}` has shape {tuple(value.shape)}: wanted {wanted}, one code for each sample")
            if value is not None and not bool(value.isfinite().all()):
                raise ValueError(f"`{name}` holds NaN or inf: look at the encoder that gave it")
        if spread is not None and bool((spread < 0).any()):
            raise ValueError("`spread` has negative numbers: wanted standard deviations, as vae.encode gives them")
        if bool((codes == codes[0]).all()):
            raise ValueError(f"`codes` are {len(codes)} times the same: there is nothing to decode; train the encoder")
