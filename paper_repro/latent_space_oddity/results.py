"""What an experiment leaves behind: claims with verdicts, numbers, a figure. Results of other settings stay."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

FORMAT, VERSION = "latent-space-oddity", 1


class Verdict(StrEnum):
    """How a claim of the paper fares."""

    REPRODUCED = "reproduced"
    PARTLY = "partly"
    NOT = "not reproduced"

    @classmethod
    def of(cls, holds: bool, *, partly: bool = False) -> Verdict:
        """Reproduced if the claim holds, else partly or not."""
        return cls.REPRODUCED if holds else cls.PARTLY if partly else cls.NOT


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, or one of ours, beside what was measured.

    Attributes:
        key: A short name, the same in every run.
        text: The claim.
        paper: The paper's number, or what its figure shows.
        ours: Our number with its spread, in words.
        value: The same as one number, to compare runs by.
        tolerance: By how much it may differ between machines.
        verdict: See :class:`Verdict`.
        reason: Why not, or what else explains it; empty where there is nothing to say.
    """

    key: str
    text: str
    paper: str
    ours: str
    value: float
    tolerance: float
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """What one experiment found.

    Attributes:
        title: Of the experiment.
        claims: With their verdicts.
        numbers: All that was measured, for programs: dictionaries, lists, strings and finite numbers.
        caption: What our figure shows.
        paper_figure: What the paper's figure shows, in one line.
        figure: Our figure.
        solved: Curves, walks or fits that were asked for.
        failed: How many of these failed. They are counted, never replaced.
        findings: Sentences with what else was found.
    """

    title: str
    claims: list[Claim]
    numbers: dict[str, Any]
    caption: str
    paper_figure: str
    figure: Figure
    solved: int = 0
    failed: int = 0
    findings: list[str] = field(default_factory=list)

    def to_record(self) -> dict[str, Any]:
        """All but the figure, as JSON holds it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "figure"}
        return fields | {"claims": [dataclasses.asdict(claim) for claim in self.claims]}


class OtherResult(ValueError):
    """The results folder holds something that must not be overwritten."""


def finished(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record in a file if it was made with these settings, None if there is no file.

    Raises:
        OtherResult: The file is damaged, of another version, or was made with other settings.
    """
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
        if record["format"] != FORMAT:
            raise KeyError(FORMAT)
    except (ValueError, KeyError, TypeError):
        raise OtherResult(
            f"{path} is damaged or no result of this reproduction: move it away, or give another --out"
        ) from None
    if record["version"] != VERSION:
        raise OtherResult(
            f"{path} is of version {record['version']}, this is version {VERSION}: give another --out, or delete it"
        )
    if record["settings"] != settings:
        raise OtherResult(
            f"{path} was made with other settings ({different(record['settings'], settings)}): "
            "give another --out, or delete it"
        )
    return record


def spread(values: Sequence[float] | NDArray[Any], form: str = ".1f", unit: str = "") -> str:
    """The mean of one number a model and their standard deviation, in words."""
    text = f"{np.mean(values):{form}}{unit}"
    return text + (f" ± {np.std(values, ddof=1):{form.lstrip('+')}}{unit}" if len(values) > 1 else "")


def rounded(values: Tensor | NDArray[Any] | Sequence[float]) -> list[float]:
    """Five digits of each number, for a record."""
    return [float(f"{value:.5g}") for value in np.asarray(values).tolist()]


def different(there: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> str:
    """Which settings differ, with both values."""
    parts = []
    for name in sorted({*there, *now}):
        a, b = there.get(name), now.get(name)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            parts.append(different(a, b, f"{within}{name}."))
        else:
            parts.append(f"{within}{name} {a} there, {b} now")
    return "; ".join(parts)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text)
    new.replace(path)


def dumped(record: Mapping[str, Any]) -> str:
    """A record as text. NaN and infinity are an error: what failed has to be counted, or None."""
    return json.dumps(record, indent=1, allow_nan=False) + "\n"
