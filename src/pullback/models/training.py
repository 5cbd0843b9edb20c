"""Train an RBF-VAE in two stages, encoder and mean, then the precision; interrupted runs go on where they stopped."""

import dataclasses
from pathlib import Path

import torch
from torch import Generator, Tensor

from pullback import io
from pullback.datasets import Dataset
from pullback.models.likelihoods import check_unit_interval, is_unit
from pullback.models.loop import CHECKPOINT, check_same_run, check_samples, fingerprint, fit, sha256
from pullback.models.model import encoded, standard_units, warn_of_collapse
from pullback.models.rbf import RBFPrecision
from pullback.models.rbfvae import FILE, FORMAT, RBFVAE, VERSION, load
from pullback.models.settings import TrainingSettings
from pullback.models.vae import COLLAPSED, VAE, warmup_weight

_MAX_CODES = 10_000  # codes kept with the model


def train(
    dataset: Dataset,
    folder: str | Path,
    *,
    settings: TrainingSettings | None = None,
    vae: VAE | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = False,
) -> RBFVAE:
    """Train an RBF-VAE, or go on with a training that was interrupted.

    First encoder and mean with constant variance (:meth:`VAE.loss`, the divergence warmed up), then, with these frozen,
    the precision at codes drawn from the encoder (:meth:`RBFPrecision.loss`, weights projected to be non-negative),
    its centers placed by k-means on the codes. Adam in both. A resumed run ends with the same weights, bit for bit, as
    one that was never interrupted. The global random state is not used.

    Args:
        dataset: What to train on; its labels are only kept with the codes.
        folder: Gets ``model.safetensors`` and ``model.json``, and while it runs a checkpoint.
        settings: Default: :class:`TrainingSettings`.
        vae: Encoder and mean that are trained already, such as those of another model (``model.vae``): only the
            precision is trained, by the settings whose names begin with ``rbf_``, and ``zeta``.
        seed: Of weights, batches, noise and k-means.
        resume: Go on with what the folder holds. False: begin anew and overwrite it.
        progress: Show a bar on the standard error stream.

    Returns:
        The model, as :func:`load` reads it.

    Warns:
        CollapseWarning: The codes hardly differ in some latent dimension.

    Raises:
        ValueError: The folder holds a run with other settings, data or seed; the data do not fit the settings, or hold
            NaN or inf; the loss becomes infinite.
        OSError: The folder cannot be written.
        KeyboardInterrupt: Passed on, after the last finished epoch was written.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), section 4 and appendix D. :cite:`oddity`
    """
    folder = Path(folder)
    settings = _fitting(settings or TrainingSettings(), dataset)
    given = None if vae is None else _weights_of(vae, settings, dataset)
    run = {"settings": settings.to_record(), "seed": seed, "dataset": fingerprint(dataset), "vae": given}
    if resume and (folder / FILE).is_file():
        _, record = io.load_tensors(folder / FILE, format=FORMAT, version=VERSION)
        check_same_run(folder, record, run)
        return load(folder)
    if not resume:
        _remove(folder / FILE, folder / CHECKPOINT)
    state = _Run(dataset.samples, settings, seed, vae)
    history = fit(
        state.samples,
        state.step,
        modules={"vae": state.vae, "rbf": state.rbf},
        optimizers=state.optimizers,
        generator=state.generator,
        epochs=state.vae_epochs + settings.rbf_epochs,
        batch_size=settings.batch_size,
        run=run,
        folder=folder,
        resume=resume,
        progress=progress,
        advice=f"`learning_rate` (up to epoch {state.vae_epochs}) or `rbf_learning_rate` (after it)",
    )
    stages = {"vae": history[: state.vae_epochs], "rbf": history[state.vae_epochs :]}
    state.model(dataset).save(folder, {**run, "history": stages, "torch": torch.__version__})
    _remove(folder / CHECKPOINT)
    return load(folder)


class _Run:
    """The two stages as one run of epochs: first encoder and mean, unless these are given, then the precision."""

    def __init__(self, samples: Tensor, settings: TrainingSettings, seed: int, given: VAE | None) -> None:
        self.settings, self.seed, self.given = settings, seed, given
        self.vae_epochs = settings.epochs if given is None else 0
        self.shift, self.scale = standard_units(samples, settings.output)
        self.samples = (samples - self.shift).div_(self.scale)
        self.generator = Generator().manual_seed(seed)
        data_dim, latent_dim, n_centers = samples.shape[1], settings.latent_dim, settings.rbf_centers
        self.vae = VAE(data_dim, latent_dim, settings.hidden, output=settings.output, generator=self.generator)
        if given is not None:
            self.vae.load_state_dict(given.state_dict())
            if settings.output == "linear":
                self.vae.in_units_of(-self.shift / self.scale, 1 / self.scale)
        centers = torch.zeros(n_centers, latent_dim, dtype=torch.float64)  # placed when their stage begins
        widths = torch.ones(n_centers, dtype=torch.float64)
        self.rbf = RBFPrecision(centers, widths, data_dim, zeta=settings.zeta)
        self.optimizers = {
            "vae": torch.optim.Adam(
                self.vae.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
            ),
            "rbf": torch.optim.Adam(
                self.rbf.parameters(), lr=settings.rbf_learning_rate, weight_decay=settings.rbf_weight_decay
            ),
        }

    def step(self, x: Tensor, epoch: int) -> float:
        """One step of the stage that the epoch is in; returns the loss."""
        stage = "vae" if epoch < self.vae_epochs else "rbf"
        optimizer = self.optimizers[stage]
        if stage == "rbf" and not optimizer.state:  # before the first step of this stage
            self._place_centers()
        optimizer.zero_grad()
        loss = self._vae_loss(x, epoch) if stage == "vae" else self._rbf_loss(x)
        loss.backward()
        optimizer.step()
        if stage == "rbf":
            self.rbf.project()
        return loss.item()

    def _vae_loss(self, x: Tensor, epoch: int) -> Tensor:
        weight = warmup_weight(epoch, self.settings.warmup * self.settings.epochs)
        return self.vae.loss(x, output_std=self.settings.output_std, warmup=weight, generator=self.generator)

    def _rbf_loss(self, x: Tensor) -> Tensor:
        with torch.no_grad():  # encoder and mean are frozen
            z = self.vae.sample(x, generator=self.generator)
            residual = (x - self.vae.decoder(z)).double()
        return self.rbf.loss(z, residual)

    def _place_centers(self) -> None:
        settings = self.settings
        codes = encoded(lambda x: self.vae.encode(x)[0], self.samples).double()
        remedy = f"set output_std below {settings.output_std:g}, or train more epochs"
        warn_of_collapse(codes.std(0, correction=0), COLLAPSED, "about 1", remedy)
        self.rbf.place(codes, a=settings.rbf_bandwidth, random_state=self.seed)

    def model(self, dataset: Dataset) -> RBFVAE:
        """The finished model in the units of the data, with the codes of an even selection of them."""
        self.vae.double()
        if self.settings.output == "linear":
            self.vae.in_units_of(self.shift.double(), self.scale.double())
            self.rbf.in_units_of(self.scale.double())
        if self.given is not None:
            self.vae.load_state_dict(self.given.state_dict())  # not one rounding away from it
        n_codes = min(len(dataset), _MAX_CODES)
        chosen = dataset[torch.arange(n_codes) * len(dataset) // n_codes]
        return RBFVAE(
            self.vae,
            self.rbf,
            settings=self.settings,
            sample_shape=dataset.sample_shape,
            codes=encoded(lambda x: self.vae.encode(x.double())[0], chosen.samples),
            labels=chosen.labels,
        )


def _weights_of(vae: VAE, settings: TrainingSettings, dataset: Dataset) -> str:
    """A checksum of an encoder and mean, after a look whether they are those that settings and data ask for."""
    wanted = {"data_dim": dataset.samples.shape[1], "latent_dim": settings.latent_dim, "hidden": list(settings.hidden)}
    wanted["output"] = settings.output
    if different := [f"{name} {vae.settings[name]}, not {v}" for name, v in wanted.items() if vae.settings[name] != v]:
        raise ValueError(
            f"`vae` has {'; '.join(different)}: give one that was trained with these settings on such data"
        )
    return sha256(torch.cat([tensor.detach().double().reshape(-1) for tensor in vae.state_dict().values()]))


def _remove(*paths: Path) -> None:
    for path in paths:
        for suffix in (".safetensors", ".json"):
            path.with_suffix(suffix).unlink(missing_ok=True)


def _fitting(settings: TrainingSettings, dataset: Dataset) -> TrainingSettings:
    """The settings with "auto" resolved, checked against the data."""
    check_samples(dataset)
    if settings.rbf_centers > len(dataset):
        raise ValueError(
            f"`dataset` has {len(dataset)} samples, but `rbf_centers` is {settings.rbf_centers}: "
            f"set rbf_centers to at most {len(dataset)}"
        )
    if settings.output == "sigmoid":
        check_unit_interval(dataset, "a sigmoid only", "set output to 'linear'")
    if settings.output == "auto":
        settings = dataclasses.replace(settings, output="sigmoid" if is_unit(dataset.samples) else "linear")
    return settings
