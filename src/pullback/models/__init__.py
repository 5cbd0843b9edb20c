"""Models with a latent space, to train, save and load: autoencoder, VAEs, GAN, ensembles of decoders."""

from pullback.models.autoencoder import Autoencoder
from pullback.models.convolutional import ConvolutionalPrecision, ConvolutionalVAE
from pullback.models.ensemble import DecoderEnsemble
from pullback.models.files import load
from pullback.models.gan import GAN, ModeCollapseWarning
from pullback.models.model import CollapseWarning
from pullback.models.rbf import RBFPrecision
from pullback.models.rbfvae import RBFVAE
from pullback.models.settings import TrainingSettings
from pullback.models.shipped import Pretrained, pretrained
from pullback.models.training import train
from pullback.models.vae import VAE

__all__ = [
    "GAN",
    "RBFVAE",
    "VAE",
    "Autoencoder",
    "CollapseWarning",
    "ConvolutionalPrecision",
    "ConvolutionalVAE",
    "DecoderEnsemble",
    "ModeCollapseWarning",
    "Pretrained",
    "RBFPrecision",
    "TrainingSettings",
    "load",
    "pretrained",
    "train",
]
