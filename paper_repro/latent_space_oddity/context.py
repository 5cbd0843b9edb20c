"""What every experiment is given: its settings, images, trained models, and a place for what is finished."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from results import dumped, write
from torch import Generator

from pullback import datasets
from pullback.datasets import Dataset
from pullback.models import RBFVAE, TrainingSettings, train

HERE = Path(__file__).parent
TIERS = ("smoke", "full")
_APART = ("run", "report", "results")


def settings_of(experiment: str, tier: str, seeds: Sequence[int] | None = None) -> dict[str, Any]:
    """The settings of an experiment in a tier: those of ``[model]`` and its own, where the tier's replace the others.

    Tables that it names in ``shares`` come along; ``seeds`` replaces the frozen ones.
    """
    with open(HERE / "settings.toml", "rb") as file:
        tables = tomllib.load(file)
    own = _of_tier(tables.get(experiment, {}), tier)
    model = _of_tier(tables["model"], tier)
    chosen = list(seeds) if seeds else own.pop("seeds", tables["seeds"][tier])
    own.pop("seeds", None)
    shared = {name: _of_tier(tables[name], tier) for name in own.pop("shares", [])}
    return {"tier": tier, "seeds": chosen, "model": model, **shared, **own}


def _of_tier(table: Mapping[str, Any], tier: str) -> dict[str, Any]:
    common = {name: value for name, value in table.items() if name not in TIERS}
    return common | table.get(tier, {})


@dataclass(frozen=True)
class Context:
    """An experiment's view of the world.

    Attributes:
        experiment: Its name.
        settings: Its settings, see :func:`settings_of`; experiments read them as ``context["name"]``.
        cache: Folder of trained models and finished parts.
        quiet: Whether to keep silent on the standard error stream.
    """

    experiment: str
    settings: dict[str, Any]
    cache: Path
    quiet: bool = False

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    @property
    def seeds(self) -> list[int]:
        """Of the models' training."""
        return self.settings["seeds"]

    @property
    def smoke(self) -> bool:
        """Whether this is the tier of embedded digits, for a quick look."""
        return self.settings["tier"] == "smoke"

    def images(self, classes: Sequence[int], per_class: int | None = None, *, seed: int = 0) -> Dataset:
        """Handwritten digits to train on, in [0, 1]: of MNIST (28 x 28), in the smoke tier those embedded (8 x 8).

        ``per_class`` of each, drawn by the seed; all of them by default, or where there are no more. Shuffled.
        """
        if self.smoke:
            every = datasets.digits()
            kept = torch.isin(labels_of(every), torch.tensor(list(classes)))
            return sampled(every[kept], per_class, seed)
        return sampled(datasets.mnist("train", classes), per_class, seed)

    def model(self, dataset: Dataset, seed: int, **changes: Any) -> RBFVAE:
        """An RBF-VAE trained with the settings ``[model]`` and these changes, from the cache if it is there.

        Models that differ in nothing but settings of the precision share encoder and mean.
        """
        early = {name: value for name, value in changes.items() if not _late(name)}
        settings, first = (TrainingSettings.from_record(self["model"] | some) for some in (changes, early))
        vae = None if settings == first else self.model(dataset, seed, **early).vae
        folder = self.cache / "models" / f"{dataset.name}-{seed}-{digest(settings.to_record(), _checksum(dataset))}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            begin = time.monotonic()
            model = train(dataset, folder, settings=settings, vae=vae, seed=seed)
            if (seconds := time.monotonic() - begin) > 1:
                self.say(f"model {folder.name} trained in {seconds:.0f} s")
        return model

    def zero_one(self, seed: int) -> tuple[Dataset, RBFVAE]:
        """All images of the digits 0 and 1, and the model of these that several experiments share."""
        dataset = self.images([0, 1])
        return dataset, self.model(dataset, seed)

    def once(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``compute`` returns, from the cache if it was finished before with these settings and this code.

        The result has to be what JSON holds. So an interrupted experiment goes on with its first unfinished part.
        """
        path = self.parts / f"{key}.json"
        if path.is_file():
            return json.loads(path.read_text())["part"]
        begin = time.monotonic()
        part = json.loads(dumped(compute()))
        seconds = time.monotonic() - begin
        write(path, dumped({"seconds": seconds, "part": part}))
        self.say(f"{key}: {seconds:.0f} s")
        return part

    @property
    def parts(self) -> Path:
        """The folder of finished parts, another one for other settings or other code."""
        return self.cache / "parts" / self.experiment / digest(self.settings, code())

    def seconds(self) -> float:
        """How long the finished parts took, and the models that were trained for them."""
        return sum(json.loads(path.read_text())["seconds"] for path in self.parts.glob("*.json"))

    def say(self, text: str) -> None:
        """A line of progress."""
        if not self.quiet:
            print(f"{self.experiment}: {text}", file=sys.stderr, flush=True)


def sampled(dataset: Dataset, per_class: int | None, seed: int) -> Dataset:
    """``per_class`` samples of each class, or all where there are fewer, in an order drawn by the seed."""
    labels = labels_of(dataset)
    order = torch.randperm(len(dataset), generator=Generator().manual_seed(seed))
    if per_class is not None:
        drawn = [order[labels[order] == label][:per_class] for label in labels.unique()]
        order = order[torch.isin(order, torch.cat(drawn))]
    return dataset[order]


def labels_of(dataset: Dataset) -> torch.Tensor:
    """The labels (n,), which the data of every experiment have."""
    if dataset.labels is None:
        raise ValueError(f"`dataset` {dataset.name} has no labels: classes are drawn by them")
    return dataset.labels


@functools.cache
def code() -> str:
    """A checksum of what computes parts: the modules of this folder but those that only run, draw and report."""
    kept = (path for path in sorted(HERE.glob("*.py")) if path.stem not in _APART and "figure" not in path.stem)
    return hashlib.sha256(b"".join(path.read_bytes() for path in kept)).hexdigest()


def box(codes: torch.Tensor, margin: float) -> torch.Tensor:
    """Bounds (d, 2) of codes, widened on every side by a share of their extent."""
    low, high = codes.amin(0), codes.amax(0)
    pad = margin * (high - low)
    return torch.stack((low - pad, high + pad), 1)


def _late(name: str) -> bool:
    """Whether a setting is of the precision alone, which is trained last."""
    return name.startswith("rbf_") or name == "zeta"


def _checksum(dataset: Dataset) -> str:
    return hashlib.sha256(dataset.samples.numpy().tobytes()).hexdigest()


def digest(*parts: Any) -> str:
    """A short checksum of what JSON can hold, for names of folders."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
