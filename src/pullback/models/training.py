"""Train an RBF-VAE in two stages, encoder and mean, then the precision; interrupted runs go on where they stopped."""

import dataclasses
import hashlib
import logging
import math
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pullback import io
from pullback._checks import PullbackWarning
from pullback.datasets import Dataset
from pullback.models.rbf import RBFPrecision, bandwidths, kmeans
from pullback.models.rbfvae import FILE, FORMAT, RBFVAE, VERSION, load
from pullback.models.settings import TrainingSettings
from pullback.models.vae import VAE

_log = logging.getLogger("pullback")

CHECKPOINT = "checkpoint.safetensors"
_FORMAT, _VERSION = "pullback.training", 1
_SECONDS = 5.0  # between checkpoints; an interruption by Ctrl-C loses no finished epoch, a killed process these seconds
_SLOTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps for a parameter
_COLLAPSED = 0.1  # standard deviation of codes below which a latent dimension is called collapsed
_CHUNK = 8192  # samples encoded at once
_MAX_CODES = 10_000  # codes kept with the model


class CollapseWarning(PullbackWarning):
    """A latent dimension carries no information: the decoder hardly changes along it."""


def train(
    dataset: Dataset,
    folder: str | Path,
    *,
    settings: TrainingSettings | None = None,
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
    run = {"settings": settings.to_record(), "seed": seed, "dataset": _fingerprint(dataset)}
    if resume and (folder / FILE).is_file():
        _, record = io.load_tensors(folder / FILE, format=FORMAT, version=VERSION)
        _check_same_run(folder, record, run)
        return load(folder)
    state = _Run(dataset.samples, settings, seed)
    checkpoint = folder / CHECKPOINT
    if not resume:
        _remove(folder / FILE, checkpoint)
    if resume and checkpoint.is_file():
        tensors, record = io.load_tensors(checkpoint, format=_FORMAT, version=_VERSION)
        try:
            _check_same_run(folder, record["run"], run)
            state.restore(tensors, record)
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{checkpoint} is no checkpoint that can be gone on with ({type(error).__name__}: {error}): "
                "choose another folder, or begin anew with resume=False (--no-resume)"
            ) from error
    _go_on(state, checkpoint, run, progress)
    model = state.model(dataset)
    model.save(folder, {**run, "history": state.history, "torch": torch.__version__})
    _remove(checkpoint)
    return load(folder)


class _Run:
    """All that changes during a training: what a checkpoint holds."""

    def __init__(self, samples: Tensor, settings: TrainingSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.shift, self.scale = _units(samples, settings)
        self.samples = (samples - self.shift).div_(self.scale)
        self.generator = torch.Generator().manual_seed(seed)
        self.history: dict[str, list[float]] = {"vae": [], "rbf": []}
        self.vae = VAE(
            samples.shape[1],
            settings.latent_dim,
            settings.hidden,
            output=settings.output,
            generator=self.generator,
        )
        self.rbf: RBFPrecision | None = None
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            self.vae.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    @property
    def epochs_done(self) -> int:
        return len(self.history["vae"]) + len(self.history["rbf"])

    @property
    def epochs_left(self) -> int:
        return self.settings.epochs + self.settings.rbf_epochs - self.epochs_done

    @property
    def precision(self) -> RBFPrecision:
        """What the second stage trains."""
        if self.rbf is None:
            raise RuntimeError("the second stage of the training has not begun: there is no precision yet")
        return self.rbf

    def epoch(self) -> float:
        """One pass over the data; returns the mean loss of a sample."""
        stage = "vae" if len(self.history["vae"]) < self.settings.epochs else "rbf"
        if stage == "rbf" and self.rbf is None:
            self._start_rbf(*self._place_centers())
        total = 0.0
        for x in self._batches():
            self.optimizer.zero_grad()
            loss = self._vae_loss(x) if stage == "vae" else self._rbf_loss(x)
            loss.backward()
            self.optimizer.step()
            if self.rbf is not None:
                self.rbf.project()
            total += loss.item() * len(x)
        mean = total / len(self.samples)
        if not math.isfinite(mean):
            name = "learning_rate" if stage == "vae" else "rbf_learning_rate"
            epoch = len(self.history[stage]) + 1
            raise ValueError(f"the loss is {mean} in epoch {epoch} of '{stage}': lower `{name}`")
        self.history[stage].append(mean)
        return mean

    def _batches(self) -> Iterator[Tensor]:
        order = torch.randperm(len(self.samples), generator=self.generator)
        for rows in order.split(self.settings.batch_size):
            yield self.samples[rows]

    def _vae_loss(self, x: Tensor) -> Tensor:
        ramp = self.settings.warmup * self.settings.epochs
        weight = min(1.0, len(self.history["vae"]) / ramp) if ramp else 1.0
        return self.vae.loss(x, output_std=self.settings.output_std, warmup=weight, generator=self.generator)

    def _rbf_loss(self, x: Tensor) -> Tensor:
        with torch.no_grad():  # encoder and mean are frozen
            z = self.vae.sample(x, generator=self.generator)
            residual = (x - self.vae.decoder(z)).double()
        return self.precision.loss(z, residual)

    def _place_centers(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            codes = torch.cat([self.vae.encode(x)[0] for x in self.samples.split(_CHUNK)]).double()
        _warn_of_collapse(codes, self.settings)
        centers, members = kmeans(codes, self.settings.rbf_centers, random_state=self.seed)
        return centers, bandwidths(codes, members, centers, a=self.settings.rbf_bandwidth)

    def _start_rbf(self, centers: Tensor, widths: Tensor) -> None:
        settings = self.settings
        self.rbf = RBFPrecision(centers, widths, self.samples.shape[1], zeta=settings.zeta)
        self.optimizer = torch.optim.Adam(
            self.rbf.parameters(), lr=settings.rbf_learning_rate, weight_decay=settings.rbf_weight_decay
        )

    def _modules(self) -> dict[str, nn.Module]:
        return {"vae": self.vae} if self.rbf is None else {"vae": self.vae, "rbf": self.rbf}

    def snapshot(self, run: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copies of all that a later epoch depends on: tensors, and the record of the run with its history."""
        tensors = {"generator": self.generator.get_state()}
        for part, module in self._modules().items():
            tensors |= {f"{part}.{name}": tensor.clone() for name, tensor in module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor.clone() for name, tensor in slots.items()}
        return tensors, {"run": run, "history": {stage: list(losses) for stage, losses in self.history.items()}}

    def restore(self, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        """Back to a snapshot; KeyError names what it lacks."""
        self.history = {stage: list(record["history"][stage]) for stage in self.history}
        if self.history["rbf"]:
            self._start_rbf(tensors["rbf.centers"], tensors["rbf.bandwidths"])
        for part, module in self._modules().items():
            module.load_state_dict({name: tensors[f"{part}.{name}"] for name in module.state_dict()})
        slots: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                slots.setdefault(int(index), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        if self.epochs_done:  # Adam would begin anew where it finds nothing
            slots = {i: {name: slots[i][name] for name in _SLOTS} for i in groups[0]["params"]}
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.generator.set_state(tensors["generator"])

    def model(self, dataset: Dataset) -> RBFVAE:
        """The finished model in the units of the data, with the codes of an even selection of them."""
        self.vae.double()
        if self.settings.output == "linear":
            self.vae.in_units_of(self.shift.double(), self.scale.double())
            self.precision.in_units_of(self.scale.double())
        n_codes = min(len(dataset), _MAX_CODES)
        chosen = dataset[torch.arange(n_codes) * len(dataset) // n_codes]
        with torch.no_grad():
            codes = torch.cat([self.vae.encode(x.double())[0] for x in chosen.samples.split(_CHUNK)])
        return RBFVAE(
            self.vae,
            self.precision,
            settings=self.settings,
            sample_shape=dataset.sample_shape,
            codes=codes,
            labels=chosen.labels,
        )


def _go_on(state: _Run, checkpoint: Path, run: dict[str, Any], progress: bool) -> None:
    """Run the epochs that are left, writing checkpoints; what was finished is kept whatever happens."""

    def write() -> float:
        io.save_tensors(checkpoint, *finished, format=_FORMAT, version=_VERSION)
        return time.monotonic()

    finished = written = state.snapshot(run)
    last = write()  # before the first epoch: a folder that cannot be written is found now
    total = state.epochs_done + state.epochs_left
    try:
        with tqdm(total=total, initial=state.epochs_done, disable=not progress, unit="epoch", desc="train") as bar:
            while state.epochs_left:
                loss = state.epoch()
                finished = state.snapshot(run)
                bar.set_postfix(loss=f"{loss:.2f}")
                bar.update()
                if time.monotonic() - last > _SECONDS:
                    written, last = finished, write()
    finally:
        if finished is not written:
            write()
            _log.info("wrote %s after %d of %d epochs", checkpoint, state.epochs_done, total)


def _remove(*paths: Path) -> None:
    for path in paths:
        for suffix in (".safetensors", ".json"):
            path.with_suffix(suffix).unlink(missing_ok=True)


def _fitting(settings: TrainingSettings, dataset: Dataset) -> TrainingSettings:
    """The settings with "auto" resolved, checked against the data."""
    x = dataset.samples
    if not bool(x.isfinite().all()):
        raise ValueError("`dataset` holds NaN or inf: remove these samples or fill the gaps")
    if bool((x == x[0]).all()):
        raise ValueError(f"`dataset` holds {len(dataset)} times the same sample: there is nothing to learn from it")
    if settings.rbf_centers > len(dataset):
        raise ValueError(
            f"`dataset` has {len(dataset)} samples, but `rbf_centers` is {settings.rbf_centers}: "
            f"set rbf_centers to at most {len(dataset)}"
        )
    is_unit = bool(((x >= 0) & (x <= 1)).all())
    if settings.output == "sigmoid" and not is_unit:
        raise ValueError(
            f"`dataset` reaches from {float(x.min()):.4g} to {float(x.max()):.4g}, but a sigmoid only from 0 to 1: "
            "scale the samples to [0, 1] or set output to 'linear'"
        )
    if settings.output == "auto":
        settings = dataclasses.replace(settings, output="sigmoid" if is_unit else "linear")
    return settings


def _units(samples: Tensor, settings: TrainingSettings) -> tuple[Tensor, Tensor]:
    """Shift (D,) and scale () to the units of the training: those of the data, or standard ones if it is linear."""
    if settings.output == "sigmoid":
        return torch.zeros(samples.shape[1]), torch.ones(())
    shift = samples.double().mean(0)
    return shift.float(), (samples.double() - shift).square().mean().sqrt().float()


def _warn_of_collapse(codes: Tensor, settings: TrainingSettings) -> None:
    std = codes.std(0, correction=0)
    if collapsed := [str(i) for i, value in enumerate(std.tolist()) if value < _COLLAPSED]:
        warnings.warn(
            f"all codes are nearly the same in latent dimension {', '.join(collapsed)} (standard deviations "
            f"{', '.join(f'{value:.2g}' for value in std.tolist())}, wanted about 1): set output_std below "
            f"{settings.output_std:g}, or train more epochs",
            CollapseWarning,
            stacklevel=2,
        )


def _fingerprint(dataset: Dataset) -> dict[str, Any]:
    digest = hashlib.sha256(dataset.samples.cpu().contiguous().numpy().data)
    return {"name": dataset.name, "n_samples": len(dataset), "sha256": digest.hexdigest()}


def _check_same_run(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = []
    for key in ("settings", "seed", "dataset"):
        there, now = found.get(key), wanted[key]
        if there == now:
            continue
        if isinstance(there, dict) and isinstance(now, dict):  # of many settings only those that differ
            names = [name for name in {**now, **there} if there.get(name) != now.get(name)]
            different += [f"{key}: {name} {there.get(name)} there, {now.get(name)} now" for name in names]
        else:
            different.append(f"{key} {there} there, {now} now")
    if different:
        raise ValueError(
            f"`folder` {folder} holds a run with other {'; '.join(different)}: choose another folder, or "
            "overwrite it with resume=False (--no-resume)"
        )
