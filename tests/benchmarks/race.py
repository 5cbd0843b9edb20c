"""The race: every problem against every contestant, in one table that is written into docs/benchmarks.md.

    OMP_NUM_THREADS=1 python tests/benchmarks/race.py                               # all of it: some six hours
    OMP_NUM_THREADS=1 python tests/benchmarks/race.py --budget 60                   # slow peers get fewer pairs: two
    OMP_NUM_THREADS=1 python tests/benchmarks/race.py --problems sphere2 --pairs 10 --dry
    OMP_NUM_THREADS=1 python tests/benchmarks/race.py --wide 10000                  # this package alone, many pairs
    OMP_NUM_THREADS=1 python tests/benchmarks/race.py --wide 1000 --problems islands

What is finished is kept in the folder --cache, so that a race that was interrupted goes on where it stopped; results of
this package are void there when its sources have changed. The peers: pip install --no-deps stochman==0.3.0
The convolutional decoder is trained on MNIST, which is looked for as `pullback.datasets.mnist` does.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

import pullback as pb
from benchmarks import bars
from benchmarks.counting import Counting
from benchmarks.peers import CONTESTANTS, Answer, Contestant, limit
from benchmarks.problems import CACHE, PROBLEMS, Problem
from benchmarks.reference import TOL, check, fine_lengths, graph_of, metric_of, polished, reference

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
MARK = "<!-- tables below are written by tests/benchmarks/run.py -->"
BATCHES = (1, 40, 1000)
CHECKED = 10  # pairs of the reference that are checked by the independent solver
Record = dict[str, Any]


@functools.cache  # what is running, though the files may change meanwhile
def digest() -> str:
    """A word that changes with the sources of the package."""
    folder = Path(pb.__file__).parent
    text = b"".join(file.read_bytes() for file in sorted(folder.rglob("*.py")))
    return hashlib.sha256(text).hexdigest()[:16]


class Store:
    """Records as JSON files of one folder, a file for each problem and contestant."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, *names: str, code: str = "") -> Record:
        """What is known; nothing if it was made by other sources."""
        file = self.folder / f"{'.'.join(names)}.json"
        record = json.loads(file.read_text()) if file.is_file() else {}
        return record if record.get("code", "") == code else {"code": code}

    def save(self, record: Record, *names: str) -> None:
        """Written beside and moved, so that it is whole even when this is interrupted."""
        file = self.folder / f"{'.'.join(names)}.json"
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(record))
        fresh.replace(file)


def referees(key: str, problem: Problem, n: int, store: Store, most_checked: int = CHECKED) -> Record:
    """The reference lengths of the first n pairs, and how far an independent solver is from some of them."""
    record = store.load(key, "reference")
    known = len(record.setdefault("best", []))
    record.setdefault("line", []), record.setdefault("gap", [])
    for first in range(known, n, 20):
        found = reference(problem, *problem.pairs(min(20, n - first), first=first))
        for name in ("best", "line", "gap"):
            record[name] += getattr(found, name).tolist()
        store.save(record, key, "reference")
    checked = min(n, most_checked if problem.d <= 16 else 2)
    record.setdefault("checked", 0), record.setdefault("above", 0.0), record.setdefault("below", 0.0)
    if record["checked"] < checked:
        best = torch.tensor(record["best"][:checked], dtype=torch.float64)
        record["above"], record["below"] = check(problem, *problem.pairs(checked), best)
        record["checked"] = checked
        store.save(record, key, "reference")
    return record


def contest(key: str, problem: Problem, name: str, n: int, store: Store, budget: float) -> Record:
    """One contestant on the first n pairs of a problem, or as many as the budget of seconds allows."""
    contestant = CONTESTANTS[name]
    record = store.load(key, name, code=digest() if contestant.ours else "")
    for column in ("length", "converged", "error", "evaluations"):
        record.setdefault(column, [])
    record.setdefault("seconds", 0.0)
    n, counter = min(n, contestant.most), Counting(problem.decoder)
    while (first := len(record["length"])) < n and record["seconds"] < budget:
        size = min(contestant.at_once, n - first)
        start, end = problem.pairs(size, first=first)
        counter.reset()
        begin = time.perf_counter()
        answer = _within(budget, contestant, replace(problem, decoder=counter), start, end)
        record["seconds"] += time.perf_counter() - begin
        if answer is None:  # too slow for so many at once: what is known so far has to do
            break
        counted = torch.full((size,), counter.reset() / size)
        record["length"] += [x if x < float("inf") else None for x in fine_lengths(problem, answer.nodes).tolist()]
        record["converged"] += answer.converged.tolist()
        record["error"] += [0.0] * size if answer.error is None else answer.error.nan_to_num().tolist()
        record["evaluations"] += (counted if answer.evaluations is None else answer.evaluations).tolist()
        store.save(record, key, name)
    return record


def timed(key: str, problem: Problem, name: str, store: Store, budget: float) -> Record:
    """The record of one contestant, with its times; they are taken with the bare decoder."""
    contestant = CONTESTANTS[name]
    record = store.load(key, name, code=digest() if contestant.ours else "")
    if "batches" not in record:
        record["batches"] = timing(contestant, problem, budget / 5)
        store.save(record, key, name)
    return record


def _within(budget: float, contestant: Contestant, problem: Problem, start: Tensor, end: Tensor) -> Answer | None:
    """The answer; what raises, or is a single pair and takes longer than the budget, has failed; several: None."""
    try:
        with limit(budget), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return contestant.solve(problem, start, end)
    except Exception as error:
        print(f"{contestant.name} on {problem.name}: {type(error).__name__}: {error}", file=sys.stderr)
        if isinstance(error, TimeoutError) and len(start) > 1:
            return None
        nothing = torch.full((len(start), 2, problem.d), torch.nan, dtype=start.dtype)
        return Answer(nothing, torch.zeros(len(start), dtype=torch.bool))


def timing(contestant: Contestant, problem: Problem, budget: float) -> list[float | None]:
    """Seconds a geodesic in batches of 1, 40 and 1,000; None where one would take longer than the budget."""
    times: list[float | None] = []
    for size in BATCHES if contestant.at_once > 1 else BATCHES[:1]:
        if times and (times[-1] is None or times[-1] * size > 4 * budget):  # a larger batch may be that much quicker
            times.append(None)
            continue
        begin, done = time.perf_counter(), 0
        while done < (5 if size == 1 else 1) and time.perf_counter() - begin < budget / 2:
            _within(budget, contestant, problem, *problem.pairs(size, first=done))
            done += 1
        spent = (time.perf_counter() - begin) / done
        times.append(spent / size if spent < budget else None)
    return times + [None] * (len(BATCHES) - len(times))


def measured(record: Record, best: Tensor, tol: float) -> Record:
    """What the table says of one contestant: excess where it converged, or of all if it never did."""
    n = len(record["length"])
    length = torch.tensor([float("nan") if x is None else x for x in record["length"]], dtype=torch.float64)
    converged = torch.tensor(record["converged"], dtype=torch.bool)
    excess = length / best[:n] - 1
    shown = excess[converged] if converged.any() else excess[~excess.isnan()]
    error = torch.tensor(record["error"], dtype=torch.float64) / length
    wrong = converged & (excess > torch.maximum(torch.full_like(error, 10 * tol), 3 * error))
    counts = torch.tensor(record["evaluations"], dtype=torch.float64)
    return {
        "n": n, "excess": excess, "shown": shown, "converged": converged, "wrong": wrong, "evaluations": counts,
        "batches": record.get("batches", [None] * len(BATCHES)),
    }  # fmt: skip


def run(key: str, store: Store, options: argparse.Namespace) -> tuple[list[str], Record]:
    """One problem: the lines of its table, and the results by contestant."""
    n, budget = options.pairs.get(key, options.pairs[""]), options.budget
    problem = PROBLEMS[key]()
    graph_of(problem)
    referee = referees(key, problem, n, store, options.checked)
    records = {
        name: contest(key, problem, name, n, store, budget)
        for name in tqdm(options.peers, desc=problem.name)
        if CONTESTANTS[name].fits(problem)
    }
    if not options.untimed:
        records = {name: timed(key, problem, name, store, budget) for name in records}
    best = torch.tensor(referee["best"][:n], dtype=torch.float64)
    for record in records.values():
        found = torch.tensor([float("inf") if x is None else x for x in record["length"]], dtype=torch.float64)
        best[: len(found)] = torch.minimum(best[: len(found)], found)
    results = {name: measured(record, best, CONTESTANTS[name].tol) for name, record in records.items()}
    line = (torch.tensor(referee["line"][:n], dtype=torch.float64) / best).quantile(0.5)
    with torch.no_grad():
        n_features = problem.decoder(problem.pairs(1)[0]).shape[1]
    text = [
        f"### {problem.name}", "",
        f"d = {problem.d}, D = {n_features}, {n} pairs; straight lines are {float(line):.3f} times as long (median); "
        f"the reference is at most {referee['above']:.0e} above an independent solver's and {referee['below']:.0e} "
        f"below, on {referee['checked']} pairs.", "",
        "| contestant | pairs | excess: median / 95% / max | evaluations, median | "
        "ms a geodesic, batch 1 / 40 / 1,000 | flagged | wrong |",
        "|---|---|---|---|---|---|---|",
        *(_line(CONTESTANTS[name].name, result) for name, result in results.items()), "",
    ]  # fmt: skip
    return text, results


def _line(name: str, result: Record) -> str:
    shown, n = result["shown"], result["n"]
    if not n:
        return f"| {name} | 0: too slow | - | - | - | - | - |"
    flagged = n - int(result["converged"].sum())
    if len(shown):
        levels = torch.tensor([0.5, 0.95, 1.0], dtype=torch.float64)
        excess = " / ".join(f"{q:.1e}" for q in shown.quantile(levels).tolist())
        excess += " (all flagged)" if flagged == n else ""
    else:
        excess = "-"
    times = " / ".join("-" if t is None else f"{1e3 * t:.2f}" for t in result["batches"])
    count = float(result["evaluations"].quantile(0.5))
    return f"| {name} | {n} | {excess} | {count:,.0f} | {times} | {flagged} | {int(result['wrong'].sum())} |"


def wide(keys: list[str], total: int, store: Store, checked: int = CHECKED) -> list[str]:
    """This package alone over many pairs of all problems together: which did it wrongly call converged?"""
    contestant, share = CONTESTANTS["pullback"], -(-total // len(keys))
    lines, converged, wrong = [], 0, 0
    for key in keys:
        problem = PROBLEMS[key]()
        graph_of(problem)
        record = store.load(key, "wide", code=digest())
        record.setdefault("converged", 0), record.setdefault("wrong", []), record.setdefault("done", 0)
        best = referees(key, problem, share, store, checked)["best"]
        for first in tqdm(range(record["done"], share, 100), desc=f"{problem.name}: wide"):
            size = min(100, share - first)
            start, end = problem.pairs(size, first=first)
            answer = contestant.solve(problem, start, end)
            length = fine_lengths(problem, answer.nodes)
            raw = {"length": length.tolist(), "converged": answer.converged.tolist(), "evaluations": [0.0] * size}
            raw["error"] = (length * 0 if answer.error is None else answer.error.nan_to_num()).tolist()
            truth = torch.minimum(torch.tensor(best[first : first + size], dtype=torch.float64), length)
            result = measured(raw, truth, contestant.tol)
            at = result["wrong"].nonzero().reshape(-1)
            near = polished(problem, answer.nodes[at]) if len(at) else length[at]
            for row, local in zip(at.tolist(), near.tolist(), strict=True):
                off, error = float(result["excess"][row]), float(raw["error"][row] / length[row])
                record["wrong"].append([first + row, off, error, float(length[row]) / local - 1])
            record["converged"] += int(answer.converged.sum())
            record["done"] = first + size
            store.save(record, key, "wide")
        converged, wrong = converged + record["converged"], wrong + len(record["wrong"])
        lines.append(f"{problem.name}: {record['converged']} of {share} converged, {len(record['wrong'])} wrongly")
        lines += [
            f"    pair {pair}: excess {off:.1e}, length_error {error:.1e}, above the geodesic next to it {local:.1e}"
            for pair, off, error, local in record["wrong"]
        ]
    return [*lines, f"together: {converged} of {share * len(keys)} converged, {wrong} wrongly"]


def write(text: str) -> None:
    """Put a section first among those that are written by programs."""
    head, mark, tables = PAGE.read_text().partition(MARK)
    if not mark:
        raise ValueError(f"{PAGE} has no line {MARK}: nothing was written")
    PAGE.write_text(f"{head}{MARK}\n\n{text}{tables}")


def _pairs(text: str) -> dict[str, int]:
    """How many pairs by problem; the empty name stands for the others."""
    first, *others = text.split(",")
    return {"": int(first)} | {name: int(n) for name, n in (other.split("=") for other in others)}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", default=",".join(PROBLEMS), help="names, with commas between")
    parser.add_argument("--peers", default=",".join(CONTESTANTS), help="names, with commas between")
    parser.add_argument("--pairs", type=_pairs, default="100", help="of each problem; then exceptions: 100,islands=40")
    parser.add_argument("--wide", type=int, default=0, help="this package and the reference alone, on so many pairs")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of a contestant on a problem")
    parser.add_argument("--checked", type=int, default=CHECKED, help="pairs that an independent solver looks at")
    parser.add_argument("--untimed", action="store_true", help="leave the batches of 1, 40 and 1,000 out")
    parser.add_argument("--cache", type=Path, default=CACHE / "results")
    parser.add_argument("--dry", action="store_true", help="print, but leave docs/benchmarks.md alone")
    options = parser.parse_args()
    for name, known in (("problems", PROBLEMS), ("peers", CONTESTANTS)):
        chosen = getattr(options, name).split(",")
        if unknown := sorted(set(chosen) - set(known)):
            parser.error(f"--{name}: {', '.join(unknown)} unknown: want some of {', '.join(known)}")
        setattr(options, name, chosen)
    return options


def main(report: Callable[[str], None] = print) -> None:
    options = _options()
    torch.set_num_threads(1)
    store = Store(options.cache)
    if options.wide:
        report("\n".join(wide(options.problems, options.wide, store, options.checked)))
        return
    sections, results = [], {}
    for key in options.problems:
        text, results[key] = run(key, store, options)
        report("\n".join(text))
        sections += text
    versions = f"torch {torch.__version__}, Python {platform.python_version()}, one thread, float64"
    command = " ".join(["python tests/benchmarks/race.py", *sys.argv[1:]]).replace(f" --cache {options.cache}", "")
    table = bars.table(results)
    title = f"## {datetime.date.today():%Y-%m-%d}: the race, {options.pairs['']} pairs a problem"
    text = "\n".join([title, "", f"`{command}`; {versions}.", "", *table, "", *sections])
    report("\n".join(table))
    if not options.dry:
        write(text)


__all__ = ["TOL", "Store", "contest", "main", "measured", "metric_of", "referees", "run", "wide", "write"]

if __name__ == "__main__":
    main()
