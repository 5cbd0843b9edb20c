"""``pullback train``: an RBF-VAE from a data set."""

from argparse import Namespace

from pullback import models
from pullback.commands.inputs import dataset_named
from pullback.models import TrainingSettings


def run(options: Namespace) -> None:
    """Train, or go on with what the folder holds."""
    settings = TrainingSettings(
        latent_dim=options.latent_dim,
        output_std=options.output_std,
        epochs=options.epochs,
        rbf_epochs=options.rbf_epochs,
        rbf_centers=options.rbf_centers,
    )
    data = dataset_named(options.data, options.classes)
    models.train(data, options.out, settings=settings, seed=options.seed, resume=options.resume, progress=True)
    print(f"{len(data)} samples of {data.name}: model in {options.out}")
