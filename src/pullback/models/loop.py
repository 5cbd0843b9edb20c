"""The one training loop: seeds, checkpoints, and runs that go on where they were interrupted."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from pullback import io
from pullback.datasets import Dataset

_log = logging.getLogger("pullback")

CHECKPOINT = "checkpoint.safetensors"
FORMAT, VERSION = "pullback.training", 2
_SECONDS = 5.0  # between checkpoints; an interruption by Ctrl-C loses no finished epoch, a killed process these seconds
_TENSOR = "tensor"  # in the record of an optimizer: the value is among the tensors


def fit(
    samples: Tensor,
    step: Callable[[Tensor, int], float],
    *,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    generator: Generator,
    epochs: int,
    batch_size: int,
    run: Mapping[str, Any],
    folder: str | Path | None = None,
    resume: bool = True,
    progress: bool = False,
    advice: str = "`learning_rate`",
) -> list[float]:
    """Train, or go on with a training that was interrupted: it ends bit for bit as one that never was.

    Each epoch visits all samples once, in an order that the generator draws. The global random state is not touched.

    Args:
        samples: x (n, ...), first axis the samples.
        step: Takes a batch of samples (b, ...) and the epoch, counted from 0; makes the steps of the optimizers and
            returns the mean loss of the batch. What it does may depend on the modules, the optimizers, the generator
            and the epoch alone, as nothing else is in the checkpoint; so a learning rate that changes is set from the
            epoch.
        modules: All whose weights and buffers change, by name; their mode is the caller's.
        optimizers: Theirs, by name.
        generator: Source of all randomness, of the order of the batches as of noise in ``step``.
        epochs: Passes over the data, those included that a checkpoint has done.
        batch_size: Samples a step.
        run: What makes the run this one, as JSON can hold it: settings, seed, :func:`fingerprint` of the data.
        folder: Gets ``checkpoint.safetensors``, and keeps it: a finished run is not trained again. None: no checkpoint.
        resume: Go on with what the folder holds. False: begin anew and overwrite it.
        progress: Show a bar on the standard error stream.
        advice: What to lower when the loss is NaN or infinite.

    Returns:
        The mean loss of a sample in each epoch.

    Raises:
        ValueError: A loss is NaN or infinite; the folder holds another run, or a damaged checkpoint.
        OSError: The folder cannot be written; found before the first epoch.
        KeyboardInterrupt: Passed on. After this as after any other error in an epoch, modules, optimizers and
            checkpoint are those of the last finished epoch.
    """
    for name, count in (("epochs", epochs), ("batch_size", batch_size), ("len(samples)", len(samples))):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"`{name}` is {count!r}: wanted a whole number of at least 1")
    state = _State(modules, optimizers, generator, [])
    path = None if folder is None else Path(folder) / CHECKPOINT
    record = json.loads(json.dumps(dict(run), allow_nan=False))  # tuples become lists, as in the file
    if path is not None and resume and path.is_file():
        _resume(state, path, record)
    if len(state.history) > epochs:
        raise ValueError(
            f"`epochs` is {epochs}, but `folder` {folder} holds {len(state.history)} of them: raise `epochs`"
        )
    if len(state.history) < epochs:
        _go_on(state, _Pass(samples, step, batch_size, advice), epochs, path, record, progress)
    return state.history


@dataclass
class _State:
    """All that a later epoch depends on."""

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    generator: Generator
    history: list[float]

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Copies: tensors, and the record of what is none."""
        tensors = {"generator": self.generator.get_state()}
        for key, module in self.modules.items():
            tensors |= {f"module.{key}.{name}": value.detach().clone() for name, value in module.state_dict().items()}
        record: dict[str, Any] = {}
        for key, optimizer in self.optimizers.items():
            record[key] = {}
            for index, slots in optimizer.state_dict()["state"].items():
                record[key][str(index)] = {n: _TENSOR if isinstance(v, Tensor) else v for n, v in slots.items()}
                prefix = f"optimizer.{key}.{index}"
                tensors |= {f"{prefix}.{n}": v.detach().clone() for n, v in slots.items() if isinstance(v, Tensor)}
        return tensors, {"history": list(self.history), "optimizers": record}

    def restore(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Back to a snapshot; KeyError or RuntimeError name what it lacks."""
        for key, module in self.modules.items():
            module.load_state_dict({name: tensors[f"module.{key}.{name}"] for name in module.state_dict()})
        for key, optimizer in self.optimizers.items():
            slots = {
                int(index): {n: tensors[f"optimizer.{key}.{index}.{n}"] if v == _TENSOR else v for n, v in slot.items()}
                for index, slot in record["optimizers"][key].items()
            }
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.history[:] = record["history"]


def _resume(state: _State, path: Path, run: dict[str, Any]) -> None:
    tensors, record = io.load_tensors(path, format=FORMAT, version=VERSION)
    try:
        check_same_run(path.parent, record["run"], run)
        state.restore(tensors, record)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{path} is no checkpoint that can be gone on with ({type(error).__name__}: {error}): "
            "choose another folder, or begin anew with resume=False (--no-resume)"
        ) from error


def _go_on(state: _State, one: "_Pass", epochs: int, path: Path | None, run: dict[str, Any], progress: bool) -> None:
    """Run the epochs that are left, writing checkpoints; what was finished is kept whatever happens."""

    def write() -> float:
        if path is not None:
            tensors, record = finished
            io.save_tensors(path, tensors, {"run": run, **record}, format=FORMAT, version=VERSION)
        return time.monotonic()

    finished = written = state.snapshot()
    last = write()  # before the first epoch: a folder that cannot be written is found now
    done = len(state.history)
    try:
        with tqdm(total=epochs, initial=done, disable=not progress, unit="epoch", desc="train") as bar:
            for epoch in range(done, epochs):
                state.history.append(one.over_the_data(epoch, state.generator))
                finished = state.snapshot()
                bar.set_postfix(loss=f"{state.history[-1]:.4g}")
                bar.update()
                if time.monotonic() - last > _SECONDS:
                    written, last = finished, write()
    finally:
        state.restore(*finished)  # an epoch that was not finished leaves no trace
        if finished is not written and path is not None:
            write()
            _log.info("wrote %s after %d of %d epochs", path, len(state.history), epochs)


@dataclass(frozen=True)
class _Pass:
    """What an epoch does."""

    samples: Tensor
    step: Callable[[Tensor, int], float]
    batch_size: int
    advice: str

    def over_the_data(self, epoch: int, generator: Generator) -> float:
        """All samples once; returns the mean loss of a sample."""
        n, total = len(self.samples), 0.0
        order = torch.randperm(n, generator=generator, device=generator.device).to(self.samples.device)
        for batch, rows in enumerate(order.split(self.batch_size)):
            loss = float(self.step(self.samples[rows], epoch))
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss} in epoch {epoch + 1}, batch {batch + 1}: lower {self.advice}; "
                    f"the state after {epoch} epochs is kept"
                )
            total += loss * len(rows)
        return total / n


def check_samples(dataset: Dataset) -> None:
    """Raise ValueError if there is nothing that can be learned: NaN, inf, or the same sample again and again."""
    x = dataset.samples
    if not bool(x.isfinite().all()):
        raise ValueError("`dataset` holds NaN or inf: remove these samples or fill the gaps")
    if bool((x == x[0]).all()):
        raise ValueError(f"`dataset` holds {len(dataset)} times the same sample: there is nothing to learn from it")


def fingerprint(dataset: Dataset) -> dict[str, Any]:
    """What tells a dataset from others, for the record of a run: name, number of samples and their SHA-256."""
    return {"name": dataset.name, "n_samples": len(dataset), "sha256": sha256(dataset.samples)}


def sha256(x: Tensor) -> str:
    """The checksum of the numbers in a tensor."""
    return hashlib.sha256(x.detach().cpu().contiguous().numpy().data).hexdigest()


def check_same_run(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise ValueError, naming what differs, if the record of a run in a folder is not the wanted one."""
    different = []
    for key, now in wanted.items():
        there = found.get(key)
        if there == now:
            continue
        if isinstance(there, dict) and isinstance(now, dict):  # of many settings only those that differ
            names = [name for name in {**now, **there} if there.get(name) != now.get(name)]
            different += [f"{key}: {name} {there.get(name)} there, {now.get(name)} now" for name in names]
        else:
            different.append(f"{key} {there} there, {now} now")
    if different:
        raise ValueError(
            f"`folder` {folder} holds a run with other {'; '.join(different)}: choose another folder, or "
            "overwrite it with resume=False (--no-resume)"
        )
