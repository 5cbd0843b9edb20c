"""Models with a latent space: a variational autoencoder with a radial-basis precision, trained, saved, loaded."""

from pullback.models.autoencoder import Autoencoder
from pullback.models.ensemble import DecoderEnsemble
from pullback.models.model import CollapseWarning
from pullback.models.rbf import RBFPrecision
from pullback.models.rbfvae import RBFVAE, load
from pullback.models.settings import TrainingSettings
from pullback.models.shipped import Pretrained, pretrained
from pullback.models.training import train
from pullback.models.vae import VAE

__all__ = [
    "RBFVAE",
    "VAE",
    "Autoencoder",
    "CollapseWarning",
    "DecoderEnsemble",
    "Pretrained",
    "RBFPrecision",
    "TrainingSettings",
    "load",
    "pretrained",
    "train",
]
