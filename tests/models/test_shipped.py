import math
import os
import time
from pathlib import Path

import pytest
import torch

import pullback
from pullback import Pullback, datasets, models
from pullback.models import pretrained

WEIGHTS = Path(pullback.__file__).parent / "models" / "weights"

# torch loads parts of its forward mode by way of its own deprecated torch.jit.script
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")


@pytest.fixture(scope="module")
def model():
    return pretrained("mnist012")


def ring(radius, n=72):
    angle = torch.linspace(0, 2 * math.pi, n + 1, dtype=torch.float64)[:-1]
    return radius * torch.stack([angle.cos(), angle.sin()], -1)


def test_the_shipped_model_is_small_and_comes_with_the_licence_of_its_data():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*")) < 3e6
    assert "Creative" in (WEIGHTS / "NOTICE").read_text()


def test_the_shipped_model_loads_in_a_moment():
    start = time.perf_counter()
    pretrained("mnist012")
    assert time.perf_counter() - start < 1


def test_the_shipped_model_has_the_settings_of_the_paper(model):
    assert (model.latent_dim, model.sample_shape) == (2, (28, 28))
    assert (model.settings.rbf_centers, model.settings.rbf_bandwidth, model.settings.zeta) == (64, 2.0, 1e-10)
    assert model.settings.hidden == (64, 32)


def test_codes_labels_and_images_belong_together(model):
    assert model.codes.shape == (10000, 2)
    assert model.codes.dtype == torch.float64
    assert model.labels.bincount().min() > 3000
    assert model.images.shape == (300, 28, 28)
    assert model.images.dtype == torch.uint8
    assert model.image_labels.bincount().tolist() == [100, 100, 100]
    assert torch.allclose(model.encode(model.images / 255), model.image_codes, atol=1e-6)


def test_the_codes_fill_a_unit_gaussian(model):
    assert torch.allclose(model.codes.T.cov(), torch.eye(2, dtype=torch.float64), atol=0.1)
    assert float(model.codes.mean(0).norm()) < 0.1


def test_the_classes_have_regions_of_their_own(model):
    # the nearest of the other codes has the same label
    distances = torch.cdist(model.codes, model.codes).fill_diagonal_(math.inf)
    same = model.labels[distances.argmin(1)] == model.labels
    assert float(same.double().mean()) > 0.95


def test_images_are_reconstructed(model):
    x = (model.images / 255).double().flatten(1)
    error = (model.vae.decoder(model.image_codes) - x).square().sum(-1)
    spread = (x - x.mean(0)).square().sum(-1)
    assert float(error.mean() / spread.mean()) < 0.6


def test_the_standard_deviation_is_small_on_the_data(model):
    low, middle, high = model.rbf(model.codes).quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    assert 0.08 < float(low) < float(middle) < 0.15
    assert float(high) < 0.5


def test_the_volume_rises_from_the_data_out_to_radius_6_in_every_direction(model):
    metric = Pullback(model.decoder)
    on_data = metric.log_volume(model.codes[::10]).median()
    walls = torch.stack([metric.log_volume(ring(radius)) for radius in (3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0)])
    assert bool((walls.median(1).values.diff() > 1).all())
    assert float(walls[-1].min() - on_data) > 4
    assert float(walls[-1].median() - on_data) > 8


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"`name` is 'mnist': wanted one of mnist012; .* load\(folder\)"):
        pretrained("mnist")


def test_the_shipped_model_is_also_a_folder_that_loads(model):
    assert torch.equal(models.load(WEIGHTS / "mnist012").codes, model.codes)


@pytest.mark.skipif(not os.environ.get("PULLBACK_DATA"), reason="needs MNIST: set PULLBACK_DATA to its folder")
def test_the_shipped_images_are_training_images_of_mnist(model):
    data = datasets.mnist(classes=(0, 1, 2))
    distance = torch.cdist((model.images / 255).flatten(1), data.samples)
    nearest = distance.argmin(1)
    assert torch.equal(data.samples[nearest], (model.images / 255).flatten(1))
    assert torch.equal(data.labels[nearest], model.image_labels)
