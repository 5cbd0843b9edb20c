"""Train the model that comes with the package, and write it into the package.

    OMP_NUM_THREADS=1 python tools/train_mnist012.py

The data are the 18,623 training images of the MNIST digits 0, 1 and 2, from $PULLBACK_DATA or by download. Takes
about a minute; an interrupted run goes on where it stopped. The model depends on the data, the settings and the seed
below, and in its last digits on the machine and the version of torch.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import torch

import pullback
from pullback import datasets, io, models
from pullback.models import shipped

CLASSES = (0, 1, 2)
EXAMPLES_PER_CLASS = 100
SEED = 0
SETTINGS = models.TrainingSettings(epochs=60, rbf_epochs=10)  # as many steps as 300 and 50 epochs on 3000 images
WEIGHTS = Path(pullback.__file__).parent / "models" / "weights" / "mnist012"

log = logging.getLogger("train_mnist012")


def training_data() -> datasets.Dataset:
    """All training images of the classes."""
    data = datasets.mnist("train", classes=CLASSES, progress=True)
    return datasets.Dataset(data.samples, data.labels, data.sample_shape, "mnist012")


def save_examples(model: models.RBFVAE, data: datasets.Dataset, folder: Path) -> None:
    """The first images of each class with their codes."""
    assert data.labels is not None
    rows = torch.cat([(data.labels == label).nonzero()[:EXAMPLES_PER_CLASS, 0] for label in CLASSES])
    images = (data.samples[rows] * 255).round().to(torch.uint8).reshape(-1, *data.sample_shape)
    tensors = {"images": images, "codes": model.encode(images / 255), "labels": data.labels[rows]}
    record = {"source": "MNIST, LeCun, Cortes, Burges; usually given as CC BY-SA 3.0"}
    io.save_tensors(folder / shipped.FILE, tensors, record, format=shipped.FORMAT, version=shipped.VERSION)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for the checkpoints; default: a temporary one")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    data = training_data()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        model = models.train(data, folder, settings=SETTINGS, seed=SEED, progress=True)
        for name in ("model.safetensors", "model.json"):
            io.write_atomically(WEIGHTS / name, (folder / name).read_bytes())
    save_examples(model, data, WEIGHTS)
    log.info("wrote %s, %d bytes", WEIGHTS, sum(file.stat().st_size for file in WEIGHTS.iterdir()))


if __name__ == "__main__":
    main()
