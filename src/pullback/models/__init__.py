"""Models with a latent space: a variational autoencoder with a radial-basis precision, trained, saved, loaded."""

from pullback.models.rbf import RBFPrecision
from pullback.models.rbfvae import RBFVAE, load
from pullback.models.settings import TrainingSettings
from pullback.models.shipped import Pretrained, pretrained
from pullback.models.training import CollapseWarning, train
from pullback.models.vae import VAE

__all__ = [
    "RBFVAE",
    "VAE",
    "CollapseWarning",
    "Pretrained",
    "RBFPrecision",
    "TrainingSettings",
    "load",
    "pretrained",
    "train",
]
