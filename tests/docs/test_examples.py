"""What the README, the documentation and the docstrings show is run, and gives what they say."""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import matplotlib
import pytest
import torch

import pullback as pb
from pullback import cli

matplotlib.use("Agg")

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
MODULES = sorted(module.name for module in pkgutil.walk_packages(pb.__path__, "pullback."))

# What a reader has at hand where the README says "your own decoder"
README = """
import torch
decoder = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 30))
z_start, z_end = torch.zeros(3, 2), torch.ones(3, 2)
"""


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a page in one language, each with the line that it starts in."""
    text = (ROOT / page).read_text(encoding="utf8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start(1)].count("\n"), match[1]) for match in found]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Examples write to a temporary folder, draw fixed random numbers and leave no figures."""
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    pyplot.close("all")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_runs_from_top_to_bottom(page):
    names: dict[str, object] = {}
    exec(README if page == "README.md" else "", names)
    for line, code in blocks(page, "python"):
        exec(compile("\n" * line + code, ROOT / page, "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash")])
def test_the_commands_of_a_page_have_arguments_that_exist(page):
    for _, code in blocks(page, "bash"):
        for command in code.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"[\[\]]", "", command), comments=True)
            if words[:1] == ["pullback"] and words[1:2] != ["COMMAND"]:
                cli.parser().parse_args(words[1:])


def test_the_readme_has_the_two_commands_that_are_run_in_a_fresh_environment():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    for mark in ("demo", "test"):
        assert len(re.findall(rf"^<!-- ci: {mark} -->\n```bash\npip install .*\n```$", text, re.MULTILINE)) == 1


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_of_a_page_exist(page):
    text = (ROOT / page).read_text(encoding="utf8")
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r"^```\{image\} (\S+)$", text, re.MULTILINE)
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (ROOT / page).parent.joinpath(target).exists()] == []


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_give_what_they_say(module):
    loaded = importlib.import_module(module)
    package = importlib.import_module(module.rpartition(".")[0])
    names = {**vars(package), **vars(loaded), "pb": pb, "torch": torch}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for example in doctest.DocTestFinder().find(loaded, module, extraglobs=names):
        report: list[str] = []
        runner.run(example, out=report.append)
        assert not report, "".join(report)
