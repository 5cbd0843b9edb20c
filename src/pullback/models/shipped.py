"""Trained models that come with the package."""

from importlib import resources

from torch import Tensor

from pullback import io
from pullback.models.rbfvae import RBFVAE, load

NAMES = ("mnist012",)
FORMAT, VERSION = "pullback.examples", 1
FILE = "examples.safetensors"


class Pretrained(RBFVAE):
    """A trained model with some of the images that it knows.

    Attributes:
        codes: Codes of the training images (n, d), float64.
        labels: Their classes (n,).
        images: Some of the training images (m, \\*sample_shape), uint8, 0 to 255.
        image_codes: The codes of these (m, d), float64.
        image_labels: Their classes (m,).
    """

    images: Tensor
    image_codes: Tensor
    image_labels: Tensor


def pretrained(name: str) -> Pretrained:
    """A model that comes with the package.

    ``"mnist012"``: an RBF-VAE of the 18,623 MNIST training images of digits 0, 1 and 2, latent dimension 2, with the
    settings of the paper (64 centers, bandwidth scale 2). ``model.settings`` has them all.

    Args:
        name: ``"mnist012"``.

    Returns:
        The model with its codes, labels and some images. Cost: reads 2 MB.

    Raises:
        ValueError: There is no such model.

    Reference:
        Arvanitidis, Hansen, Hauberg (2018), section 6. :cite:`oddity`

    Example:
        >>> model = pretrained("mnist012")
        >>> model.encode(model.images / 255).shape == model.image_codes.shape
        True
    """
    if name not in NAMES:
        raise ValueError(
            f"`name` is {name!r}: wanted one of {', '.join(NAMES)}; for a model of your own use load(folder)"
        )
    with resources.as_file(resources.files("pullback.models") / "weights" / name) as folder:
        base = load(folder)
        tensors, _ = io.load_tensors(folder / FILE, format=FORMAT, version=VERSION)
    model = Pretrained(
        base.vae,
        base.rbf,
        settings=base.settings,
        sample_shape=base.sample_shape,
        codes=base.codes,
        labels=base.labels,
    )
    for attribute, key in (("images", "images"), ("image_codes", "codes"), ("image_labels", "labels")):
        model.register_buffer(attribute, tensors[key], persistent=False)
    return model
