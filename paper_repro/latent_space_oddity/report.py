"""Tables from results: on the terminal, and in README.md between marks, so that no number is typed by hand.

python paper_repro/latent_space_oddity/report.py
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from context import HERE, settings_of
from results import OtherResult, Verdict, finished, write

Records = Mapping[str, Mapping[str, Any]]
EXPECTED = HERE / "expected.json"
_TABLE = ("", "claim", "the paper", "here", "verdict", "why")


def as_text(records: Records) -> str:
    """Claims, numbers and verdicts for a terminal."""
    lines = []
    for name, record in records.items():
        lines.append(f"\n{record['title']} ({name}, {record['seconds']} s; {_failures(record)})")
        for claim in record["claims"]:
            lines.append(f"  {claim['verdict'].upper():<15} {claim['text']}")
            told = f"paper: {claim['paper']}; here: {claim['ours']}"
            told += f"; {claim['reason']}" if claim["reason"] else ""
            lines += textwrap.wrap(told, 118, initial_indent=" " * 18, subsequent_indent=" " * 18)
        lines += [line for text in record["findings"] for line in textwrap.wrap(f"- {text}", 118, initial_indent="  ")]
    counts = {}
    for record in records.values():
        for claim in record["claims"]:
            counts[claim["verdict"]] = counts.get(claim["verdict"], 0) + 1
    return "\n".join([*lines, "", ", ".join(f"{n} {verdict}" for verdict, n in counts.items())])


def as_markdown(record: Mapping[str, Any], figure: str) -> str:
    """A section of README.md: the table of one experiment, what else was found, the picture."""
    rows = [_TABLE, ("---",) * len(_TABLE)]
    for claim in record["claims"]:
        rows.append(
            (claim["key"], claim["text"], claim["paper"], claim["ours"], f"**{claim['verdict']}**", claim["reason"])
        )
    findings = [f"- {text}" for text in record["findings"]]
    cost = f"{_failures(record).capitalize()}. {record['seconds'] / 60:.1f} minutes; models that several experiments "
    cost += "share count once."
    picture = [
        f"![{record['caption']}]({figure})",
        f"*{record['caption']}* The paper's figure: {record['paper_figure']}",
    ]
    parts = [_table(rows), "\n".join(findings), cost, *picture]
    return "\n\n".join(part for part in parts if part)


def overview(records: Records) -> str:
    """The table that a reader sees first: an experiment a line, its claims by verdict, and one number."""
    verdicts = [verdict.value for verdict in Verdict]
    heads = ("experiment", *verdicts, "the first of them, here")
    rows = [heads, ("---",) * len(heads)]
    for record in records.values():
        claims = record["claims"]
        by_verdict = [[claim["key"] for claim in claims if claim["verdict"] == verdict] for verdict in verdicts]
        rows.append((record["title"], *map(", ".join, by_verdict), f"{claims[0]['key']}: {claims[0]['ours']}"))
    every = [claim["verdict"] for record in records.values() for claim in record["claims"]]
    total = ", ".join(f"{every.count(verdict)} {verdict}" for verdict in verdicts)
    minutes = sum(record["seconds"] for record in records.values()) / 60
    return f"{_table(rows)}\n\nOf {len(every)} claims: {total}. One experiment after the other: {minutes:.0f} minutes."


def comparison(records: Records, others: Records) -> str:
    """What a second run found differently: claims with another verdict, and how far numbers moved."""
    pairs = [
        (record["title"], claim, other)
        for name, record in records.items()
        for claim, other in zip(record["claims"], others[name]["claims"], strict=True)
    ]
    rows = [
        (title, claim["key"], *(f"**{run['verdict']}**: {run['ours']}" for run in (claim, other)))
        for title, claim, other in pairs
        if claim["verdict"] != other["verdict"]
    ]
    moved = sorted(abs(claim["value"] - other["value"]) / claim["tolerance"] for _, claim, other in pairs)
    minutes = sum(record["seconds"] for record in others.values()) / 60
    text = (
        f"Of {len(pairs)} claims {len(pairs) - len(rows)} have the same verdict. In {sum(x <= 1 for x in moved)} the "
        "numbers differ by no more than the tolerance of `expected.json`, in the median by "
        f"{moved[len(moved) // 2]:.0%} of it. One experiment after the other: {minutes:.0f} minutes."
    )
    heads = ("experiment", "claim", "first run", "second run")
    return f"{text}\n\n{_table([heads, ('---',) * 4, *rows])}" if rows else text


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)


def expectation(records: Records, tier: str, others: Records) -> dict[str, Any]:
    """What expected.json becomes when these results are frozen; other tiers and experiments stay.

    A claim to which a second run gave another verdict may have either, each with its number.
    """
    known = json.loads(EXPECTED.read_text()) if EXPECTED.is_file() else {}
    frozen = known.get(tier, {})
    for name, record in records.items():
        kept = ("verdict", "value", "tolerance")
        frozen[name] = {claim["key"]: {field: claim[field] for field in kept} for claim in record["claims"]}
        for other in others.get(name, {"claims": []})["claims"]:
            if other["verdict"] != frozen[name][other["key"]]["verdict"]:
                frozen[name][other["key"]]["or"] = {field: other[field] for field in ("verdict", "value")}
    return known | {tier: frozen}


def changes(records: Records, tier: str) -> list[str]:
    """A line for each verdict that is not the frozen one, and each number that left its tolerance."""
    frozen = json.loads(EXPECTED.read_text()).get(tier, {}) if EXPECTED.is_file() else {}
    lines = []
    for name, record in records.items():
        found = {claim["key"]: claim for claim in record["claims"]}
        for key in sorted({*found, *frozen.get(name, {})}):
            now, then = found.get(key), frozen.get(name, {}).get(key)
            if now is None or then is None:
                lines.append(f"{name}, {key}: {'no longer checked' if now is None else 'not in expected.json'}")
                continue
            allowed = [run for run in (then, then.get("or")) if run and run["verdict"] == now["verdict"]]
            if not allowed:
                lines.append(f"{name}, {key}: expected {then['verdict']}, found {now['verdict']} ({now['ours']})")
            elif all(abs(now["value"] - run["value"]) > then["tolerance"] for run in allowed):
                wanted = allowed[0]["value"]
                lines.append(
                    f"{name}, {key}: expected {wanted:.4g} +- {then['tolerance']:.2g}, found {now['value']:.4g}"
                )
    return lines


def _failures(record: Mapping[str, Any]) -> str:
    return f"{record['failed']} of {record['solved']} solves failed" if record["solved"] else "nothing to solve"


def again(folder: Path) -> Path:
    """The folder of the results of a second run, beside those of the first."""
    return folder.with_name(f"{folder.name}-again")


def kept(folder: Path, order: Sequence[str]) -> Records:
    """The records in a folder of results, of those experiments that have one."""
    paths = {name: folder / f"{name}.json" for name in order}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}


def update(readme: Path, folder: Path, order: Sequence[str]) -> None:
    """Rewrite what stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` in a page.

    An experiment without a record gets a line that says so.
    """
    records, others = kept(folder, order), kept(again(folder), order)
    text = readme.read_text()
    for name in re.findall(r"<!-- results: (\w+) -->", text):
        figure = (folder / f"{name}.png").relative_to(readme.parent).as_posix()
        if name == "overview":
            body = overview(records)
        elif name == "again":
            body = comparison({name: records[name] for name in others}, others)
        else:
            body = as_markdown(records[name], figure) if name in records else "*Not run yet.*"
        block = f"<!-- results: {name} -->\n{body}\n<!-- end -->"
        text = re.sub(rf"<!-- results: {name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    write(readme, text)


if __name__ == "__main__":
    from run import EXPERIMENTS

    results = HERE / "results" / "full"
    try:
        for each in EXPERIMENTS:
            for place in (results, again(results)):
                finished(place / f"{each}.json", settings_of(each, "full"))
    except OtherResult as error:
        raise SystemExit(str(error)) from None
    update(HERE / "README.md", results, list(EXPERIMENTS))
