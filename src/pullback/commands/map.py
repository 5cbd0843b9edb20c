"""``pullback map``: the magnification of a latent plane."""

from argparse import Namespace

import numpy as np

from pullback import plot
from pullback.commands.inputs import codes_from, model_named
from pullback.commands.outputs import check_writable, save_arrays, save_figure
from pullback.metrics import Pullback


def run(options: Namespace) -> None:
    """Draw the map; write it as a picture and as numbers."""
    from matplotlib.figure import Figure

    model = model_named(options.model)
    if model.latent_dim != 2:
        raise ValueError(f"MODEL has {model.latent_dim} latent dimensions; a map shows a model with two")
    codes, labels = codes_from(options.codes, model)
    path = check_writable(options.out, ".png")
    check_writable(path.with_suffix(".npz"), ".npz")
    bounds = options.bounds and (tuple(options.bounds[:2]), tuple(options.bounds[2:]))
    figure = Figure(figsize=(7, 6), layout="constrained")
    ax = figure.subplots()
    plot.magnification(
        Pullback(model.decoder), codes=codes, labels=labels, bounds=bounds, resolution=options.resolution, ax=ax
    )
    save_figure(path, figure)
    image = ax.images[0]
    left, right, bottom, top = image.get_extent()
    values = np.asarray(image.get_array())  # (rows, columns)
    n_rows, n_columns = values.shape
    arrays = {
        "log_volume": values,
        "x": left + (np.arange(n_columns) + 0.5) * (right - left) / n_columns,
        "y": bottom + (np.arange(n_rows) + 0.5) * (top - bottom) / n_rows,
    }
    save_arrays(path.with_suffix(".npz"), arrays)
    print(f"{n_columns} x {n_rows} cells: {path} and {path.with_suffix('.npz')}")
