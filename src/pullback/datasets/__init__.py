"""Data to train on: images, poses of a walk, cells by their genes, toys, and arrays in files.

Digits are embedded, MNIST and Fashion-MNIST are downloaded when they are not at hand; toys are drawn. The walk and the
cells have no public file to download: their functions say where they come from.
"""

from pullback.datasets.arrays import from_file
from pullback.datasets.dataset import Dataset
from pullback.datasets.files import RemoteFile, download
from pullback.datasets.images import FILES, MIRRORS, digits, fashion_mnist, mnist
from pullback.datasets.recordings import Cells, Poses, blood_cells, walking
from pullback.datasets.toys import noisy_surface, two_clusters

__all__ = [
    "FILES",
    "MIRRORS",
    "Cells",
    "Dataset",
    "Poses",
    "RemoteFile",
    "blood_cells",
    "digits",
    "download",
    "fashion_mnist",
    "from_file",
    "mnist",
    "noisy_surface",
    "two_clusters",
    "walking",
]
