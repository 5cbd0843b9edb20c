"""The geometry of a saved model: which metric belongs to which kind."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Generator, Tensor, nn

from pullback.decoders import Ensemble
from pullback.metrics import FisherRao, Metric, Pullback
from pullback.models import GAN, RBFVAE, VAE, Autoencoder, ConvolutionalVAE, DecoderEnsemble
from pullback.models.likelihoods import Gaussian
from pullback.models.model import Model
from pullback.types import Points

_DRAWN = 2000  # codes of a generator without an encoder


class Latent(NamedTuple):
    """A latent space to look at: its metric, d, and the codes that are known without a file."""

    metric: Metric
    dim: int
    codes: Points | None = None
    labels: Tensor | None = None


def latent_of(model: RBFVAE | Model, seed: int = 0) -> Latent:
    """The geometry of a saved model: the usual metric of its kind. Its weights become float64."""
    model.double()
    if isinstance(model, RBFVAE):
        return Latent(Pullback(model.decoder), model.latent_dim, model.codes, model.labels)
    dim = cast(int, model.latent_dim)
    if isinstance(model, GAN):
        codes = torch.randn(_DRAWN, dim, generator=Generator(device="cpu").manual_seed(seed), dtype=torch.float64)
        return Latent(Pullback(model.generator), dim, codes)
    if isinstance(model, DecoderEnsemble):
        return Latent(Pullback(Ensemble(list(model.decoders))), dim)
    if isinstance(model, VAE) and not isinstance(model.likelihood, Gaussian):
        return Latent(FisherRao(model.distribution), dim)
    if isinstance(model, Autoencoder | ConvolutionalVAE | VAE):
        return Latent(Pullback(cast(nn.Module, model.decoder)), dim)
    raise ValueError(f"MODEL is a {type(model).__name__}, whose metric is not known here: use pullback.check_geometry")
