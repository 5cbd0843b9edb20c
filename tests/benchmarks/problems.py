"""The decoders and random pairs of the race, the same on every machine: each from seeds, some trained for a minute."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

import pullback as pb
from pullback.models.rbf import RBFPrecision, bandwidths, kmeans

POOL = 10_000  # pairs are the first of so many, so that fewer are a part of more
CACHE = Path(tempfile.gettempdir()) / "pullback-race"


@dataclass(frozen=True)
class Problem:
    """A decoder and where its points come from.

    Attributes:
        name: As in the table.
        decoder: (n, d) -> (n, D), float64, without gradients for its weights.
        d: Latent dimension.
        draw: n latent points (n, d) from a generator.
        smooth: Whether the decoder has second derivatives.
        bounds: (d, 2), a box around the points where a grid graph is wanted to find ways around walls.
        resolution: Of that grid, along each axis.
    """

    name: str
    decoder: nn.Module
    d: int
    draw: Callable[[int, Generator], Tensor]
    smooth: bool = True
    bounds: Tensor | None = None
    resolution: int = 100

    def pairs(self, n: int, *, seed: int = 1, first: int = 0) -> tuple[Tensor, Tensor]:
        """Random pairs (n, d), (n, d); of one seed those from `first` on."""
        if first + n > POOL:
            raise ValueError(f"there are {POOL} pairs: {first + n} are too many")
        points = self.draw(2 * POOL, torch.Generator().manual_seed(seed))
        return points[first : first + n], points[POOL + first : POOL + first + n]


class Scaled(nn.Module):
    """A layer times a number."""

    def __init__(self, layer: nn.Module, factor: float) -> None:
        super().__init__()
        self.layer, self.factor = layer, factor

    def forward(self, z: Tensor) -> Tensor:
        return self.factor * self.layer(z)


def perceptron(widths: Sequence[int], activation: type[nn.Module], gain: float, seed: int) -> nn.Sequential:
    """Random layers: weights normal with standard deviation gain / sqrt(inputs), biases 0.1 times normal."""
    generator = torch.Generator().manual_seed(seed)
    layers = nn.Sequential()
    for inputs, outputs in itertools.pairwise(widths):
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
        bias = torch.randn(outputs, generator=generator, dtype=torch.float64)
        layer.weight.data, layer.bias.data = weight * gain / math.sqrt(inputs), 0.1 * bias
        layers.append(layer).append(activation())
    del layers[-1]
    return layers


def normal(d: int, spread: float = 1.0) -> Callable[[int, Generator], Tensor]:
    """Draws points from N(0, spread^2)."""
    return lambda n, generator: spread * torch.randn(n, d, generator=generator, dtype=torch.float64)


def among(codes: Tensor) -> Callable[[int, Generator], Tensor]:
    """Draws some of given points (n, d)."""
    return lambda n, generator: codes[torch.randint(len(codes), (n,), generator=generator)]


def box(codes: Tensor, margin: float = 0.1) -> Tensor:
    """Bounds (d, 2) of points, a margin wider on each side."""
    low, high = codes.amin(0), codes.amax(0)
    return torch.stack((low - margin * (high - low), high + margin * (high - low)), 1)


def _sphere(d: int) -> Problem:
    return Problem(f"sphere d={d}", pb.surfaces.Sphere(), d, normal(d, 0.6))


def _tanh(d: int, gain: float) -> Problem:
    decoder = perceptron((d, 128, 128, 256 if d > 8 else 784), nn.Tanh, gain, seed=d)
    return _frozen(Problem(f"tanh d={d} gain {gain}", decoder, d, normal(d)))


def _gelu() -> Problem:
    return _frozen(Problem("GELU d=16", perceptron((16, 128, 128, 784), nn.GELU, 1.5, seed=16), 16, normal(16)))


def _relu() -> Problem:
    decoder = perceptron((8, 128, 128, 784), nn.ReLU, 1.5, seed=8)
    return _frozen(Problem("ReLU d=8", decoder, 8, normal(8), smooth=False))


def _ensemble() -> Problem:
    members = [perceptron((2, 64, 64, 256), nn.Tanh, 1.5, seed=100 + k) for k in range(8)]
    return _frozen(Problem("ensemble of 8", pb.Ensemble(members), 2, normal(2)))


def _mnist() -> Problem:
    model = pb.models.pretrained("mnist012")
    return Problem("MNIST (shipped)", model.decoder, 2, among(model.codes), bounds=box(model.codes))


def _frozen(problem: Problem) -> Problem:
    problem.decoder.requires_grad_(False).eval()
    return problem


def _convolutional(d: int = 4, epochs: int = 3, seed: int = 0) -> Problem:
    """Transposed convolutions to 28 x 28 with tanh, trained as the decoder of a variational autoencoder of MNIST."""
    generator = torch.Generator().manual_seed(seed)
    vae = pb.models.VAE(784, d, (256, 64), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # torch's own initial weights
        vae.decoder = nn.Sequential(
            nn.Linear(d, 128), nn.Tanh(), nn.Linear(128, 16 * 7 * 7), nn.Tanh(), nn.Unflatten(1, (16, 7, 7)),
            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.Tanh(), nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Flatten(),
            vae.likelihood,
        )  # fmt: skip
    file = CACHE / "models" / f"conv-{d}-{epochs}-{seed}.pt"
    if not file.is_file():
        _fit(vae, pb.datasets.mnist().samples[:30_000], epochs, output_std=0.3, generator=generator)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(vae.state_dict(), file)
    vae.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        codes = vae.encode(pb.datasets.mnist().samples[:2000])[0].double()
    return _frozen(Problem(f"convolutional d={d}", vae.decoder.double(), d, among(codes)))


def _islands(epochs: int = 60, rbf_epochs: int = 2, seed: int = 0) -> Problem:
    """A variational autoencoder of 8 x 8 digits whose variance has 64 narrow centers: islands with walls between."""
    samples = pb.datasets.digits().samples
    generator = torch.Generator().manual_seed(seed)
    vae = pb.models.VAE(64, 2, (64, 32), generator=generator)
    file = CACHE / "models" / f"islands-{ISLANDS_STD}-{epochs}-{rbf_epochs}-{seed}.pt"
    if not file.is_file():
        _fit(vae, samples, epochs, output_std=ISLANDS_STD, generator=generator)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"vae": vae.state_dict(), "rbf": _fit_rbf(vae, samples, rbf_epochs, generator).state_dict()}, file)
    saved = torch.load(file, weights_only=True)
    vae.load_state_dict(saved["vae"])
    rbf = RBFPrecision(saved["rbf"]["centers"], saved["rbf"]["bandwidths"], 64, zeta=ISLANDS_ZETA)
    rbf.load_state_dict(saved["rbf"])
    vae.double()
    with torch.no_grad():
        codes = vae.encode(samples.double())[0]
    decoder = pb.Gaussian(vae.decoder, rbf)
    return _frozen(Problem("islands", decoder, 2, among(codes), bounds=box(codes), resolution=200))


ISLANDS_ZETA = 1e-2  # a standard deviation of 10 between the islands
ISLANDS_STD = 0.5  # of the pixels in training: the codes form clusters with gaps between


def _fit(vae: pb.models.VAE, samples: Tensor, epochs: int, *, output_std: float, generator: Generator) -> None:
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    for epoch in range(epochs):
        warmup = min(1.0, 3 * (epoch + 1) / epochs)
        for rows in torch.randperm(len(samples), generator=generator).split(128):
            optimizer.zero_grad()
            vae.loss(samples[rows], output_std=output_std, warmup=warmup, generator=generator).backward()
            optimizer.step()


def _fit_rbf(vae: pb.models.VAE, samples: Tensor, epochs: int, generator: Generator) -> RBFPrecision:
    with torch.no_grad():
        codes = vae.encode(samples)[0].double()
        residual = samples.double() - vae.decoder(codes.float()).double()
    centers, members = kmeans(codes, 64)
    rbf = RBFPrecision(centers, bandwidths(codes, members, centers, a=1.0), samples.shape[1], zeta=ISLANDS_ZETA)
    optimizer = torch.optim.Adam(rbf.parameters(), lr=1.0)
    for _ in range(epochs):
        for rows in torch.randperm(len(samples), generator=generator).split(128):
            optimizer.zero_grad()
            rbf.loss(codes[rows], residual[rows]).backward()
            optimizer.step()
            rbf.project()
    return rbf


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "sphere2": lambda: _sphere(2),
    "sphere3": lambda: _sphere(3),
    "sphere10": lambda: _sphere(10),
    "tanh2-1.5": lambda: _tanh(2, 1.5),
    "tanh2-2.5": lambda: _tanh(2, 2.5),
    "tanh8-1.5": lambda: _tanh(8, 1.5),
    "tanh8-2.5": lambda: _tanh(8, 2.5),
    "tanh32-1.5": lambda: _tanh(32, 1.5),
    "tanh32-2.5": lambda: _tanh(32, 2.5),
    "gelu16": _gelu,
    "relu8": _relu,
    "conv": _convolutional,
    "mnist": _mnist,
    "islands": _islands,
    "ensemble8": _ensemble,
}
