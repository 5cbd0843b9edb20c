"""A trained model: encoder, and a decoder with a mean and a standard deviation, ready for geometry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from pullback import io
from pullback.decoders import Gaussian
from pullback.models.rbf import RBFPrecision
from pullback.models.settings import TrainingSettings
from pullback.models.vae import VAE
from pullback.types import Points

FORMAT, VERSION = "pullback.rbfvae", 1
FILE = "model.safetensors"
_CHUNK = 8192  # samples encoded at once


class RBFVAE(nn.Module):
    """A variational autoencoder whose decoder has a variance that grows away from the data.

    In eval mode, in float64 and without gradients for its parameters, as geometry wants it. The two modules given are
    changed to that state.

    Args:
        vae: Encoder and mean.
        rbf: Standard deviation.
        settings: How it was trained.
        sample_shape: Shape of one sample; flattened it has D entries.
        codes: Codes of the training data (n, d), or of some of them.
        labels: Their labels (n,), if there are any.

    Attributes:
        decoder: :class:`~pullback.decoders.Gaussian`: codes (n, d) to mean and standard deviation (n, 2D).

    Example:
        >>> model = pretrained("mnist012")
        >>> metric = pb.Pullback(model.decoder)     # the expected metric of the decoder
    """

    codes: Tensor
    labels: Tensor | None

    def __init__(
        self,
        vae: VAE,
        rbf: RBFPrecision,
        *,
        settings: TrainingSettings,
        sample_shape: tuple[int, ...],
        codes: Points,
        labels: Int[Tensor, " n"] | None = None,
    ) -> None:
        super().__init__()
        self.vae, self.rbf = vae, rbf
        self.decoder = Gaussian(vae.decoder, rbf)
        self.settings, self.sample_shape = settings, sample_shape
        self.register_buffer("codes", codes)
        self.register_buffer("labels", labels)
        self.double().eval().requires_grad_(False)

    @property
    def latent_dim(self) -> int:
        """d, length of a code."""
        return self.settings.latent_dim

    def encode(self, x: Tensor) -> Points:
        """Codes of samples: the encoder's means.

        Args:
            x: Samples (n, \\*sample_shape) or flattened (n, D), floating, scaled as the training data.

        Returns:
            Codes (n, d), float64.

        Raises:
            ValueError: The shape does not fit, or the samples are integers or hold NaN or inf.
        """
        x = torch.as_tensor(x)
        if x.ndim < 2 or tuple(x.shape[1:]) not in {(self.vae.data_dim,), self.sample_shape}:
            raise ValueError(
                f"`x` has shape {tuple(x.shape)}: wanted (n, {self.vae.data_dim}), or samples of shape "
                f"{self.sample_shape} behind n; give a single sample as x[None]"
            )
        if not x.is_floating_point():
            raise ValueError(
                f"`x` has dtype {x.dtype}: wanted floats scaled as the training data; 8-bit pixels: x / 255"
            )
        if not bool(x.isfinite().all()):
            raise ValueError("`x` holds NaN or inf: remove these samples or fill the gaps")
        with torch.no_grad():
            chunks = [self.vae.encode(chunk.flatten(1).to(self.codes))[0] for chunk in x.split(_CHUNK)]
        return torch.cat(chunks)

    def save(self, folder: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Write ``model.safetensors`` and ``model.json`` into a folder; :func:`load` reads them.

        Args:
            folder: Made if it is missing.
            record: More to keep in the JSON.

        Raises:
            OSError: The folder cannot be written.
        """
        # the decoder has the modules of vae and rbf once more
        tensors = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("decoder.")}
        record = {"settings": self.settings.to_record(), "sample_shape": list(self.sample_shape), **(record or {})}
        io.save_tensors(Path(folder) / FILE, tensors, record, format=FORMAT, version=VERSION)


def load(folder: str | Path) -> RBFVAE:
    """Read a trained model from the folder that :func:`~pullback.models.train` wrote. No code in it is run.

    Args:
        folder: Holds ``model.safetensors``.

    Returns:
        The model in eval mode, float64.

    Raises:
        FileNotFoundError: The folder holds no model.
        ValueError: The file is damaged, foreign, newer than this package, or its tensors do not fit its settings.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        unfinished = " (its training was interrupted: run it again to go on)" if Path(folder).is_dir() else ""
        raise FileNotFoundError(f"there is no {FILE} in {folder}{unfinished}; give the folder of a finished training")
    tensors, record = io.load_tensors(path, format=FORMAT, version=VERSION)
    try:
        settings = TrainingSettings.from_record(record["settings"])
        sample_shape = tuple(int(length) for length in record["sample_shape"])
        data_dim = torch.Size(sample_shape).numel()
        # a generator of its own: these weights are replaced, and the global generator stays as it is
        vae = VAE(data_dim, settings.latent_dim, settings.hidden, output=settings.output, generator=torch.Generator())
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has an unusable record ({error}); train the model again") from error
    _check_shapes(path, tensors, vae, settings)
    vae.load_state_dict(_part(tensors, "vae."), assign=True)
    rbf = RBFPrecision(tensors["rbf.centers"], tensors["rbf.bandwidths"], data_dim, zeta=settings.zeta)
    rbf.load_state_dict(_part(tensors, "rbf."))
    return RBFVAE(
        vae,
        rbf,
        settings=settings,
        sample_shape=sample_shape,
        codes=tensors["codes"],
        labels=tensors.get("labels"),
    )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_shapes(path: Path, tensors: Mapping[str, Tensor], vae: VAE, settings: TrainingSettings) -> None:
    """Every tensor that the settings ask for is there, in its shape, and there is none beyond these."""
    d, n_centers = settings.latent_dim, settings.rbf_centers
    wanted: dict[str, tuple[int, ...]] = {f"vae.{name}": tuple(t.shape) for name, t in vae.state_dict().items()}
    wanted |= {"rbf.centers": (n_centers, d), "rbf.bandwidths": (n_centers,), "rbf.zeta": ()}
    wanted |= {"rbf.weight": (vae.data_dim, n_centers)}
    n_codes = len(tensors["codes"]) if "codes" in tensors and tensors["codes"].ndim else 0
    wanted["codes"] = (n_codes, d)
    if "labels" in tensors:
        wanted["labels"] = (n_codes,)
    if missing := sorted(set(wanted) - set(tensors)):
        raise ValueError(f"{path} lacks the tensors {', '.join(missing)}; train the model again")
    if unknown := sorted(set(tensors) - set(wanted)):
        raise ValueError(f"{path} has tensors that do not belong there: {', '.join(unknown)}; train the model again")
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{path} has '{name}' of shape {tuple(tensors[name].shape)}: wanted {shape} by its settings"
            )
