"""Reproduce Latent Space Oddity (Arvanitidis, Hansen, Hauberg, ICLR 2018): run its experiments and check the verdicts.

    python paper_repro/latent_space_oddity/run.py --all --tier smoke
    python paper_repro/latent_space_oddity/run.py --only kmeans interpolation

The exit code is 0 when every verdict is the expected one, 1 when one changed or an experiment failed, 2 for bad input.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from context import HERE, TIERS, Context, settings_of
from report import EXPECTED, again, as_text, changes, expectation, kept
from results import FORMAT, VERSION, OtherResult, dumped, finished, write

# in the order of the report
EXPERIMENTS = (
    "variance_maps",
    "near_and_far",
    "likelihood",
    "kmeans",
    "interpolation",
    "mixtures",
    "video",
    "walks",
    "sensitivity",
    "other_data",
)
LONGEST_FIRST = ("other_data", "sensitivity", "kmeans", "likelihood", "video")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="every experiment")
    which.add_argument(
        "--only", nargs="+", choices=EXPERIMENTS, metavar="NAME", help=f"some of {', '.join(EXPERIMENTS)}"
    )
    command.add_argument("--tier", choices=TIERS, default="full", help="smoke: embedded digits, minutes (%(default)s)")
    command.add_argument("--seeds", nargs="+", type=int, metavar="N", help="of the models, instead of the frozen ones")
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", help="for results; without it results/TIER beside this file"
    )
    command.add_argument("--cache", type=Path, metavar="FOLDER", default=HERE / "cache", help="for models and parts")
    command.add_argument("--workers", type=int, metavar="N", default=2, help="experiments at once (%(default)s)")
    command.add_argument("--freeze", action="store_true", help="write the verdicts found to expected.json")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns the exit code."""
    options = parser().parse_args(arguments)
    names = [name for name in EXPERIMENTS if options.all or name in options.only]
    if wrong := _wrong(options):
        print(wrong, file=sys.stderr)
        return 2
    out = options.out or HERE / "results" / options.tier
    settings = {name: settings_of(name, options.tier, options.seeds) for name in names}
    try:
        records = {name: finished(out / f"{name}.json", settings[name]) for name in names}
    except OtherResult as error:
        print(error, file=sys.stderr)
        return 2
    missing = [name for name in (*LONGEST_FIRST, *names) if name in names and records[name] is None]
    failed = _run(list(dict.fromkeys(missing)), settings, out, options)
    records = {name: finished(out / f"{name}.json", settings[name]) for name in names}
    done = {name: record for name, record in records.items() if record is not None}
    print(as_text(done))
    if options.freeze and not failed:
        write(EXPECTED, dumped(expectation(done, options.tier, kept(again(HERE / "results" / options.tier), names))))
    changed = [] if options.seeds else changes(done, options.tier)
    for line in [*changed, *failed]:
        print(line, file=sys.stderr)
    return 1 if changed or failed else 0


def _wrong(options: argparse.Namespace) -> str | None:
    """What is wrong with options that are right one by one."""
    if options.seeds and options.out is None:
        return "--seeds needs --out FOLDER: the folder of the frozen seeds is kept for these"
    if options.seeds and options.freeze:
        return "--seeds and --freeze exclude each other: verdicts are frozen on the seeds of settings.toml"
    if options.workers < 1:
        return f"--workers is {options.workers}: wanted 1 or more"
    return None


def _run(names: list[str], settings: dict[str, dict[str, Any]], out: Path, options: argparse.Namespace) -> list[str]:
    """Run experiments in processes of their own; returns a line for each that failed. Finished ones stay."""
    if not names:
        return []
    workers = min(options.workers, len(names))
    spawn = multiprocessing.get_context("spawn")  # threads of torch do not survive a fork
    failed = []
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        running = {pool.submit(perform, name, settings[name], out, options.cache): name for name in names}
        try:
            for future in as_completed(running):
                error = future.exception()
                if error is not None:
                    failed.append(f"{running[future]} failed: {type(error).__name__}: {error}{_advice(error)}")
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.terminate()
            pool.shutdown(cancel_futures=True)
            print("interrupted: what is finished is kept; the same command goes on from there", file=sys.stderr)
            raise SystemExit(130) from None
    return failed


def perform(name: str, settings: dict[str, Any], out: Path, cache: Path) -> None:
    """Run one experiment and write its record and its figure."""
    os.environ["NUMBA_NUM_THREADS"] = "1"  # UMAP's; with more it would give torch as many, too
    import matplotlib as mpl
    import torch

    import pullback

    mpl.use("Agg")
    torch.set_num_threads(1)  # models are small: more threads wait for each other
    context = Context(name, settings, cache)
    result = importlib.import_module(name).run(context)
    figure = out / f"{name}.png"
    out.mkdir(parents=True, exist_ok=True)
    result.figure.savefig(figure, dpi=110, bbox_inches="tight")
    record = {"format": FORMAT, "version": VERSION, "experiment": name, "settings": settings, **result.to_record()}
    record |= {"seconds": round(context.seconds()), "figure": figure.name}
    record |= {"pullback": pullback.__version__, "torch": torch.__version__}
    write(out / f"{name}.json", dumped(json.loads(json.dumps(record))))
    context.say(f"finished in {record['seconds']} s")


def _advice(error: BaseException) -> str:
    if isinstance(error, ConnectionError | FileNotFoundError):
        return "\n  without the data, `--tier smoke` runs on digits that are embedded"
    return ""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: experiments end, too
    raise SystemExit(main())
