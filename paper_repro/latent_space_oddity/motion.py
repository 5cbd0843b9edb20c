"""Things that move, and the models of them: a film that is drawn by code, and the poses of a person who walks.

The paper's video is unknown, and so are its layers: this film is ours, and so are those of ``pb.models``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from context import Context, box, digest
from filelock import FileLock
from torch import Generator, Tensor

import pullback as pb
from pullback.datasets import Dataset, Poses
from pullback.models import ConvolutionalVAE, RBFPrecision

_INK, _PAPER = 0.9, 0.1  # gray of the ball, and of what is behind it
_EDGE = 1.5  # pixels that the edge of the ball is soft over
_LOBE = 0.3  # half the width and the height of the eight, in sides of a frame


@dataclass(frozen=True)
class Scene:
    """A latent plane of things that move.

    Attributes:
        name: What is seen.
        data: In the order of time.
        codes: (n, 2), float64.
        decoder: Mean and standard deviation.
        precision: The part of the decoder that gives the latter.
    """

    name: str
    data: Dataset
    codes: Tensor
    decoder: pb.Gaussian
    precision: RBFPrecision

    @property
    def metric(self) -> pb.Pullback:
        """The expected metric of mean and standard deviation."""
        return pb.Pullback(self.decoder)

    def decode(self, z: Tensor) -> Tensor:
        """The mean at codes (n, 2): (n, D)."""
        with torch.no_grad():
            return self.decoder.mean(z)


def tabulated(metric: pb.Metric, codes: Tensor, resolution: int, margin: float) -> pb.Tabulated:
    """The metric read off a table over the box of the codes and a margin around it, in shares of its sides."""
    return pb.Tabulated(metric, box(codes, margin), resolution, at=codes)


def film(context: Context, seed: int) -> Scene:
    """The film and its convolutional model of this seed, trained or from the cache."""
    settings = context["film"]
    data = figure_eight(settings["n_frames"], settings["side"], settings["rounds"], settings["radius"])
    folder = context.cache / "models" / f"film-{seed}-{digest(settings)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "model.safetensors").is_file():
            model = ConvolutionalVAE.load(folder)
        else:
            begin = time.monotonic()
            model = ConvolutionalVAE(data.sample_shape, **settings["model"], generator=Generator())
            model.fit(data, **settings["training"], seed=seed, folder=folder).save(folder)
            context.say(f"model {folder.name} trained in {time.monotonic() - begin:.0f} s")
    model.requires_grad_(False)
    return Scene("film", data, model.encode(data.samples.double())[0], model.decoder, model.precision)


def walk(context: Context, seed: int) -> Scene:
    """The poses and their model of this seed: of a real person, in the smoke tier of a stick figure."""
    data = stick_figure() if context.smoke else pb.datasets.walking(1)
    model = context.model(data, seed, **context["poses"])
    return Scene("walk", data, model.codes, model.decoder, model.rbf)


def figure_eight(n: int, side: int, rounds: float, radius: float, *, noise: float = 0.03, seed: int = 0) -> Dataset:
    """A ball that runs along a figure of eight: frames (side, side) in [0, 1], with a little noise of the camera.

    Every place of its way is passed several times, the crossing in two directions that no single frame tells apart.
    """
    phase = 2 * math.pi * rounds * torch.arange(n) / n
    axis = (torch.arange(side) + 0.5) / side - 0.5
    across = axis - _LOBE * torch.sin(phase)[:, None, None]
    along = axis[:, None] - _LOBE * torch.sin(2 * phase)[:, None, None]
    inside = torch.sigmoid((radius - torch.hypot(across, along)) * side / _EDGE)
    clean = _PAPER + (_INK - _PAPER) * inside
    grain = noise * torch.randn(clean.shape, generator=Generator().manual_seed(seed))
    return Dataset((clean + grain).clamp(0, 1).flatten(1), None, (side, side), "film")


def stick_figure(n: int = 200, rounds: float = 2.4) -> Poses:
    """A walking figure of nine joints by sines, in the form of the real walk: where its data are not at hand."""
    phase = 2 * math.pi * rounds * torch.arange(n) / n
    parents = (-1, 0, 1, 0, 3, 0, 5, 1, 1)
    names = ("hips", "neck", "head", "left knee", "left foot", "right knee", "right foot", "left hand", "right hand")
    pose = torch.zeros(n, len(parents), 3)
    pose[:, 1, 1], pose[:, 2, 1] = 9.0, 12.0
    for side, leg, hand in ((-1.0, 3, 7), (1.0, 5, 8)):
        swing = 0.5 * side * torch.sin(phase)
        bend = swing - 0.4 * (1 + side * torch.cos(phase))
        pose[:, leg, 0] = pose[:, leg + 1, 0] = side
        pose[:, leg, 1], pose[:, leg, 2] = -7 * torch.cos(swing), 7 * torch.sin(swing)
        pose[:, leg + 1, 1] = pose[:, leg, 1] - 7 * torch.cos(bend)
        pose[:, leg + 1, 2] = pose[:, leg, 2] + 7 * torch.sin(bend)
        pose[:, hand, 0], pose[:, hand, 1] = 3 * side, 2.0
        pose[:, hand, 2] = -6 * torch.sin(swing)
    return Poses(pose.flatten(1), None, (len(parents), 3), "stick-figure", names, parents, 120.0)
