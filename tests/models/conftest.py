import pytest
import torch

from pullback.datasets import Dataset
from pullback.models import TrainingSettings


@pytest.fixture
def dataset():
    """60 samples of shape (2, 3) near a curved surface, in [0, 1], of two classes."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(60, 2, generator=generator)
    directions = torch.randn(2, 6, generator=generator)
    samples = (2 * (z @ directions).sin()).sigmoid()
    return Dataset(samples, (z[:, 0] > 0).long(), (2, 3), "toy")


@pytest.fixture
def settings():
    """So little that a training takes a few hundredths of a second."""
    return TrainingSettings(
        hidden=(8, 5), output_std=0.05, epochs=6, batch_size=16, rbf_centers=5, rbf_epochs=4, learning_rate=0.03
    )
