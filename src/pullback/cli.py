"""The command line: ``pullback demo``, ``train``, ``encode``, ``geodesic``, ``distances``, ``map``
and ``check``.

Only the standard library is imported here, so that ``--help`` answers at once. What a command does stands in the module
of :mod:`pullback.commands` that has its name.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import TextIO

USER_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
_RESUMED = ("train", "geodesic", "distances")

_MODEL = "folder that `pullback train` wrote, or the name of a shipped model: mnist012"
_DATA = (
    "mnist, fashion-mnist, digits, walking, blood-cells, or a .npy or .npz file with an array of samples, first axis = "
    "samples"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What stands behind ``pullback`` on the command line. Default: that of this process.

    Returns:
        The exit code: 0, 1 when a check says that the geometry cannot be believed, 2 after an error that the user can
        mend (one line on stderr), 130 after Ctrl-C, 141 when nobody reads the output any more, as with ``| head -1``.
    """
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            _give_up_if_broken(stream)
        return BROKEN_PIPE


def _give_up_if_broken(stream: TextIO) -> None:
    """Let what nobody reads go nowhere, so that the interpreter does not complain at its end."""
    try:
        stream.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _main(arguments: Sequence[str] | None) -> int:
    options = parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            code = import_module(f"pullback.commands.{options.command}").run(options)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError) as error:
        if options.traceback:
            raise
        print(f"pullback: error: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        kept = "; what was finished is kept, the same command goes on" if options.command in _RESUMED else ""
        print(f"\npullback: interrupted{kept}", file=sys.stderr)
        return INTERRUPTED
    return code or 0


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _print_warning(message: object, *_: object) -> None:
    print(f"pullback: warning: {_one_line(message)}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, one subparser a command."""
    top = argparse.ArgumentParser(prog="pullback", description="The geometry of latent spaces.")
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    top.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_demo, _add_train, _add_encode, _add_geodesic, _add_distances, _add_map, _add_check):
        add(commands)
    return top


class _Version(argparse.Action):
    """Looks the version up when it is asked for, not on every start."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"pullback {version('pullback')}")
        parser.exit()


def _add(commands: "argparse._SubParsersAction", name: str, help: str, description: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=help, description=description)


def _add_demo(commands: "argparse._SubParsersAction") -> None:
    command = _add(
        commands,
        "demo",
        "geodesics of a shipped model, compared with straight lines",
        "Geodesics between digits in the latent space of a shipped RBF-VAE, compared with the straight lines. "
        "Writes magnification.png, interpolation.png and geodesics.csv.",
    )
    command.add_argument("--out", default="pullback-demo", metavar="FOLDER", help="where to write (%(default)s)")
    command.add_argument("--pairs", type=_count, default=10, metavar="N", help="number of pairs (%(default)s)")
    command.add_argument("--seed", type=_seed, default=0, help="of the choice of pairs (%(default)s)")


def _add_train(commands: "argparse._SubParsersAction") -> None:
    command = _add(
        commands,
        "train",
        "train an RBF-VAE",
        "Train an RBF-VAE and write it to a folder. "
        "An interrupted training goes on when the same command is given again.",
    )
    command.add_argument("data", metavar="DATA", help=_DATA)
    command.add_argument("--out", required=True, metavar="FOLDER", help="where to write the model")
    command.add_argument("--classes", type=_integers, metavar="K,K,...", help="labels to train on; all without it")
    command.add_argument("--seed", type=_seed, default=0, help="of weights and batches (%(default)s)")
    command.add_argument("--latent-dim", type=_count, default=2, metavar="D", help="length of a code (%(default)s)")
    command.add_argument(
        "--output-std",
        type=_positive,
        default=1.0,
        metavar="S",
        help="standard deviation of the data around the decoder's mean; smaller keeps more in the codes (%(default)s)",
    )
    command.add_argument("--epochs", type=_count, default=300, metavar="N", help="passes over the data (%(default)s)")
    command.add_argument(
        "--rbf-epochs", type=_count, default=50, metavar="N", help="the same for the variance (%(default)s)"
    )
    command.add_argument(
        "--rbf-centers", type=_count, default=64, metavar="K", help="radial basis functions (%(default)s)"
    )
    _add_resume(command, "training")


def _add_encode(commands: "argparse._SubParsersAction") -> None:
    command = _add(
        commands,
        "encode",
        "codes of samples",
        "Encode samples. The .npz holds codes (n, d), float64, and labels (n,) when the data have them.",
    )
    command.add_argument("model", metavar="MODEL", help=_MODEL)
    command.add_argument("data", metavar="DATA", help=_DATA)
    command.add_argument(
        "--out", default="codes.npz", metavar="FILE.npz", help="where to write the codes (%(default)s)"
    )
    command.add_argument("--classes", type=_integers, metavar="K,K,...", help="labels to encode; all without it")
    command.add_argument(
        "--split", choices=("train", "test"), default="train", help="of mnist and fashion-mnist (%(default)s)"
    )


def _add_geodesic(commands: "argparse._SubParsersAction") -> None:
    command = _add(
        commands,
        "geodesic",
        "geodesics between pairs of codes",
        "Geodesics between pairs of codes, in blocks. Each finished block is kept: an interrupted run goes on where it "
        "stopped when the same command is given again. Writes geodesics.csv, one row a pair, block by block, and at "
        "the end geodesics.npz, which also has the nodes of the curves (pairs, nodes, d).",
    )
    command.add_argument("model", metavar="MODEL", help=_MODEL)
    pairs = command.add_mutually_exclusive_group(required=True)
    pairs.add_argument(
        "--pairs",
        metavar="FILE.csv",
        help="one pair a row: d numbers of the start, then d of the end; or columns named start_0, ..., end_0, ...",
    )
    pairs.add_argument("--random", type=_count, metavar="N", help="this many random pairs of different codes")
    command.add_argument("--codes", metavar="FILE.npz", help="codes for --random; without it those kept with the model")
    command.add_argument("--seed", type=_seed, default=0, help="of the random pairs (%(default)s)")
    command.add_argument("--out", required=True, metavar="FOLDER", help="where to write")
    command.add_argument("--tol", type=_positive, default=1e-4, help="relative error of a length (%(default)s)")
    command.add_argument(
        "--block", type=_count, default=64, metavar="N", help="pairs solved, and kept, at once (%(default)s)"
    )
    _add_resume(command, "run")


def _add_distances(commands: "argparse._SubParsersAction") -> None:
    command = _add(
        commands,
        "distances",
        "the distances between all pairs of codes",
        "The distances between all pairs of codes, by shortest paths over a graph of neighbors with decoded lengths. "
        "Written block by block: an interrupted run goes on where it stopped when the same command is given again. "
        "Beside the matrix, a zarr array, stands the graph, D.graph.safetensors.",
    )
    command.add_argument("model", metavar="MODEL", help=_MODEL)
    command.add_argument("codes", metavar="CODES", help="file of `pullback encode`, or a .npy of floats (n, d)")
    command.add_argument("--out", required=True, metavar="D.zarr", help="folder to write the matrix to")
    command.add_argument("--neighbors", type=_count, default=16, metavar="K", help="of each code (%(default)s)")
    command.add_argument("--block", type=_count, metavar="N", help="rows of a block; else 128 MiB, or a 16th of all")
    command.add_argument("--workers", type=_count, metavar="N", help="processes; without it one a core, one a share")
    command.add_argument(
        "--shard", type=_shard, metavar="I/N", help="only share I, from 0, of N commands that write to the same folder"
    )
    _add_resume(command, "run")


def _add_map(commands: "argparse._SubParsersAction") -> None:
    command = _add(
        commands,
        "map",
        "magnification map",
        "The log volume of the metric over the latent plane, as a picture and as .npz of the same name with log_volume "
        "(rows, columns), and x (columns,), y (rows,), the centers of the cells.",
    )
    command.add_argument("model", metavar="MODEL", help=_MODEL)
    command.add_argument("--codes", metavar="FILE.npz", help="codes to draw; without it those kept with the model")
    command.add_argument(
        "--out", default="map.png", metavar="FILE.png", help="where to write the picture (%(default)s)"
    )
    command.add_argument(
        "--resolution", type=_count, default=200, metavar="N", help="cells on the longer side (%(default)s)"
    )
    command.add_argument(
        "--bounds",
        type=float,
        nargs=4,
        metavar=("LEFT", "RIGHT", "BOTTOM", "TOP"),
        help="part of the plane; without it the range of the codes and 15%% of it on every side",
    )


def _add_check(commands: "argparse._SubParsersAction") -> None:
    command = _add(
        commands,
        "check",
        "does the curvature matter on these data, and can it be believed",
        "Check the geometry of a latent space: dead directions, growth away from the data, straight lines against "
        "geodesics; the verdict first, then what to do about what is wrong. Writes report.txt, report.json and "
        "pictures. The exit code is 1 when the geometry cannot be believed.",
    )
    command.add_argument(
        "model", metavar="MODEL", help=f"{_MODEL}; or one that any model of the package saved itself to"
    )
    command.add_argument(
        "--codes",
        metavar="FILE",
        help="codes of the data, .npy (n, d) or what `pullback encode` wrote; without it those kept with the model, or "
        "draws from the prior of a GAN",
    )
    command.add_argument("--out", required=True, metavar="FOLDER", help="where to write")
    command.add_argument("--pairs", type=_count, default=200, metavar="N", help="of codes, at random (%(default)s)")
    command.add_argument("--seed", type=_seed, default=0, help="of all that is random (%(default)s)")


def _add_resume(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"go on with an interrupted {what}; --no-resume begins anew and overwrites it",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2**32 - 1}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _shard(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 0/32, the first, or 31/32, the last")
    return int(i), int(n)


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of labels such as 0,1,2") from None


if __name__ == "__main__":
    sys.exit(main())
