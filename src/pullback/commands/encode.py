"""``pullback encode``: codes of samples."""

from argparse import Namespace

from pullback.commands.inputs import dataset_named, model_named
from pullback.commands.outputs import check_writable, save_arrays


def run(options: Namespace) -> None:
    """Encode and write the codes."""
    model = model_named(options.model)
    data = dataset_named(options.data, options.classes, options.split)
    check_writable(options.out, ".npz")
    arrays = {"codes": model.encode(data.samples).numpy()}
    if data.labels is not None:
        arrays["labels"] = data.labels.numpy()
    save_arrays(options.out, arrays)
    print(f"{len(data)} codes of {model.latent_dim} dimensions: {options.out}")
