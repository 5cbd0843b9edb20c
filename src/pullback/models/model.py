"""What the models share: settings that rebuild them, training from a seed, files."""

import math
import warnings
from abc import ABC
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor, nn

from pullback import io
from pullback._checks import PullbackWarning
from pullback.datasets import Dataset
from pullback.models.loop import fingerprint, fit
from pullback.types import Points

FILE = "model.safetensors"
_CHUNK = 8192  # samples encoded at once


class CollapseWarning(PullbackWarning):
    """A latent dimension carries no information: the decoder hardly changes along it."""


class Model(nn.Module, ABC):
    """A module that is rebuilt from its settings, which JSON can hold.

    Attributes:
        settings: The arguments of the constructor.
        history: The mean loss of each epoch of the last training; of each part that is trained apart, if any.
        run: The record of the last training: its settings, seed and data.
    """

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.settings = dict(settings)
        self.history: list[float] | dict[str, list[float]] = []
        self.run: dict[str, Any] = {}

    @classmethod
    def _from_settings(cls, settings: Mapping[str, Any], generator: Generator) -> Self:
        return cls(**settings, generator=generator)  # pyright: ignore[reportCallIssue]

    def _fit(
        self,
        dataset: Dataset,
        samples: Tensor,
        loss: Callable[[Self, Tensor, int, Generator], Tensor],
        finish: Callable[[Self], None],
        *,
        epochs: int,
        batch_size: int,
        learning_rate: float,
        seed: int,
        folder: str | Path | None,
        resume: bool,
        progress: bool,
        **options: Any,
    ) -> None:
        """Train all parameters by Adam from fresh weights, and leave them in eval mode.

        The training is that of a twin: until its first step nothing of this model changes. After an interruption the
        model is that of the last finished epoch, as after the end.

        Args:
            dataset: For the record.
            samples: x (n, ...), as the loss wants them.
            loss: Of the twin, for a batch, in an epoch, with noise from a generator.
            finish: What else is done with the twin when its training ends.
            options: More settings, for the record.
        """
        check_rate(learning_rate)
        like = next(self.parameters())
        generator = Generator().manual_seed(seed)
        twin = self._from_settings(self.settings, generator).to(like)
        optimizer = torch.optim.Adam(twin.parameters(), lr=learning_rate)
        begun = False

        def step(x: Tensor, epoch: int) -> float:
            nonlocal begun
            begun = True
            optimizer.zero_grad()
            value = loss(twin, x, epoch, generator)
            value.backward()
            optimizer.step()
            return value.item()

        training = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, **options}
        run = {"settings": self.settings, "training": training, "seed": seed, "dataset": fingerprint(dataset)}
        history: list[float] = []
        try:
            history = fit(
                samples,
                step,
                modules={"model": twin},
                optimizers={"model": optimizer},
                generator=generator,
                epochs=epochs,
                batch_size=batch_size,
                run={"model": self.FORMAT, **run},
                folder=folder,
                resume=resume,
                progress=progress,
            )
        finally:
            if begun or history:
                finish(twin)
                self.load_state_dict(twin.state_dict())
                self.history, self.run = history, run
                self.eval()

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a folder; :meth:`load` reads them.

        Args:
            folder: Made if it is missing; a model in it is overwritten.

        Raises:
            OSError: The folder cannot be written.
        """
        record = {"settings": self.settings, "history": self.history, "run": self.run}
        io.save_tensors(Path(folder) / FILE, self.state_dict(), record, format=self.FORMAT, version=self.VERSION)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what :meth:`save` wrote. No code in it is run.

        Args:
            folder: Holds ``model.safetensors``.

        Returns:
            The model in eval mode, on the CPU, in the dtype that it was saved in.

        Raises:
            FileNotFoundError: The folder holds no model.
            ValueError: The file is damaged, of another model, newer than this package, or its tensors do not fit its
                settings.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"there is no {FILE} in {folder}; give the folder that `save` wrote to")
        tensors, record = io.load_tensors(path, format=cls.FORMAT, version=cls.VERSION)
        try:
            # a generator of its own: these weights are replaced, and the global generator stays as it is
            model = cls._from_settings(record["settings"], Generator())
            model.load_state_dict(tensors, assign=True)
            model.history, model.run = record["history"], dict(record["run"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())  # torch breaks its lines
            raise ValueError(f"{path} has an unusable record ({reason}); train the model again") from error
        return model.eval()


def check_rate(learning_rate: float) -> None:
    """Raise ValueError if nothing can be learned at this rate."""
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"`learning_rate` is {learning_rate!r}: wanted a positive number, such as 1e-3")


def check_data_dim(dataset: Dataset, data_dim: int) -> None:
    """Raise ValueError if the samples are not of the length that a model takes."""
    if (found := dataset.samples.shape[1]) != data_dim:
        raise ValueError(
            f"`dataset` has samples of {found} numbers, but the model takes {data_dim}: set data_dim={found}"
        )


def standard_units(samples: Tensor, output: str) -> tuple[Tensor, Tensor]:
    """Shift (D,) and scale () to the units of a training: those of the data for a sigmoid, else standard ones."""
    if output == "sigmoid":
        return torch.zeros(samples.shape[1]), torch.ones(())
    shift = samples.double().mean(0)
    return shift.float(), (samples.double() - shift).square().mean().sqrt().float()


def encoded(encode: Callable[[Tensor], Points], samples: Tensor) -> Points:
    """Codes (n, d) of many samples (n, D), without derivatives."""
    with torch.no_grad():
        return torch.cat([encode(x) for x in samples.split(_CHUNK)])


def warn_of_collapse(std: Tensor, least: float, wanted: str, remedy: str) -> None:
    """Warn if the standard deviation of the codes (d,) is below ``least`` in some latent dimension."""
    if collapsed := [str(i) for i, value in enumerate(std.tolist()) if value < least]:
        warnings.warn(
            f"all codes are nearly the same in latent dimension {', '.join(collapsed)} (standard deviations "
            f"{', '.join(f'{value:.2g}' for value in std.tolist())}, wanted {wanted}): {remedy}",
            CollapseWarning,
            stacklevel=3,
        )
