"""Any saved model from its folder."""

from __future__ import annotations

from pathlib import Path

from pullback import io
from pullback.models import rbfvae
from pullback.models.autoencoder import Autoencoder
from pullback.models.convolutional import ConvolutionalVAE
from pullback.models.ensemble import DecoderEnsemble
from pullback.models.gan import GAN
from pullback.models.model import FILE, Model
from pullback.models.rbfvae import RBFVAE
from pullback.models.vae import VAE

_KINDS: dict[str, type[Model]] = {
    kind.FORMAT: kind for kind in (Autoencoder, ConvolutionalVAE, DecoderEnsemble, GAN, VAE)
}


def load(folder: str | Path) -> RBFVAE | Model:
    """Read a model of any kind from the folder that it was saved to. No code in it is run.

    Args:
        folder: Holds ``model.safetensors``, as :func:`~pullback.models.train` or ``save`` wrote it.

    Returns:
        The model in eval mode, on the CPU; an :class:`~pullback.models.RBFVAE` in float64, others as they were saved.

    Raises:
        FileNotFoundError: The folder holds no model.
        ValueError: The file is damaged, foreign, newer than this package, or its tensors do not fit its settings.
    """
    path = Path(folder) / FILE
    kind = _KINDS.get(io.format_of(path) or "") if path.is_file() else None
    return rbfvae.load(folder) if kind is None else kind.load(folder)
