"""The machinery of paper_repro/latent_space_oddity; its experiments are run by their smoke tier."""

import importlib
import json
import re
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pullback.datasets import Dataset

FOLDER = Path(__file__).parents[1] / "paper_repro" / "latent_space_oddity"
NAMES = ("results", "context", "report", "run")

FAKE = '''
import matplotlib.pyplot as plt
from results import Claim, Result, Verdict


def run(context):
    """Count how often parts are computed, in a file."""
    def compute():
        with open({log!r}, "a") as log:
            log.write("computed ")
        return {{"value": 1.0}}

    value = context.once("part", compute)["value"]
    {then}
    claim = Claim("one", "one is one", "1", f"{{value:g}}", value, 0.1, Verdict.of(value == 1))
    numbers = {{"value": value}}
    return Result("Fake", [claim], numbers, "ours", "theirs", plt.figure(), solved=4, failed=1, findings=["so"])
'''


@pytest.fixture
def oddity(monkeypatch, tmp_path):
    """The modules of the folder, with a settings file of the test's own and experiments ``fake`` and ``broken``."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    modules = SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    (tmp_path / "settings.toml").write_text(
        textwrap.dedent("""
            [seeds]
            full = [3, 4]
            smoke = [3]
            [model]
            epochs = 4
            [model.smoke]
            epochs = 2
            hidden = [6, 5]
            rbf_centers = 4
            rbf_epochs = 2
            [fake]
            pairs = 10
            shares = ["film"]
            [fake.full]
            pairs = 20
            seeds = [5]
            [film]
            side = 28
            [film.smoke]
            side = 8
        """)
    )
    monkeypatch.setattr(modules.context, "HERE", tmp_path)
    monkeypatch.setattr(modules.run, "HERE", tmp_path)
    monkeypatch.setattr(modules.report, "EXPECTED", tmp_path / "expected.json")
    monkeypatch.setattr(modules.run, "EXPECTED", tmp_path / "expected.json")
    monkeypatch.setattr(modules.run, "EXPERIMENTS", ("fake", "broken"))
    # processes only where a test is about them: each imports torch again
    monkeypatch.setattr(modules.run, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    yield modules
    for name in (*NAMES, "fake", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def experiments(monkeypatch, tmp_path):
    """Where ``fake`` and ``broken`` write what they computed."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    log = str(tmp_path / "log")
    missing = 'raise ConnectionError("no MNIST here")'
    (folder / "fake.py").write_text(FAKE.format(log=log, then="pass"))
    (folder / "broken.py").write_text(FAKE.format(log=log, then=missing))
    monkeypatch.syspath_prepend(str(folder))
    return Path(log)


def command(tmp_path, *more):
    return ["--tier", "smoke", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *more]


def test_a_run_writes_its_record_and_figure_and_a_second_one_computes_nothing(oddity, experiments, tmp_path, capfd):
    assert oddity.run.main(["--only", "fake", *command(tmp_path, "--freeze")]) == 0
    record = json.loads((tmp_path / "out" / "fake.json").read_text())
    assert record["claims"][0]["verdict"] == "reproduced"
    assert record["settings"] == {
        "tier": "smoke",
        "seeds": [3],
        "model": record["settings"]["model"],
        "pairs": 10,
        "film": {"side": 8},
    }
    assert (tmp_path / "out" / "fake.png").stat().st_size > 1000
    assert "REPRODUCED      one is one" in capfd.readouterr().out
    assert oddity.run.main(["--only", "fake", *command(tmp_path)]) == 0
    assert experiments.read_text() == "computed "


def test_an_interrupted_run_goes_on_with_its_first_unfinished_part_and_data_that_are_missing_name_the_other_tier(
    oddity, experiments, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(oddity.run, "ProcessPoolExecutor", ProcessPoolExecutor)
    assert oddity.run.main(["--all", *command(tmp_path, "--freeze")]) == 1
    assert "broken failed: ConnectionError: no MNIST here\n  without the data, `--tier smoke`" in capfd.readouterr().err
    assert (tmp_path / "out" / "fake.json").is_file()  # the other one stays
    source = tmp_path / "experiments" / "broken.py"
    source.write_text(source.read_text().replace('raise ConnectionError("no MNIST here")', "pass"))
    assert not (tmp_path / "expected.json").exists()  # nothing is frozen by half
    assert oddity.run.main(["--only", "broken", *command(tmp_path, "--freeze")]) == 0
    assert experiments.read_text() == "computed computed "  # one each


def test_a_changed_verdict_or_number_is_told_and_the_exit_code_says_so(oddity, experiments, tmp_path, capfd):
    expected = tmp_path / "expected.json"
    oddity.run.main(["--only", "fake", *command(tmp_path, "--freeze")])
    frozen = json.loads(expected.read_text())
    for field, value, told in (
        ("verdict", "partly", "fake, one: expected partly, found reproduced (1)"),
        ("value", 1.2, "fake, one: expected 1.2 +- 0.1, found 1"),
    ):
        expected.write_text(json.dumps({"smoke": {"fake": {"one": frozen["smoke"]["fake"]["one"] | {field: value}}}}))
        capfd.readouterr()
        assert oddity.run.main(["--only", "fake", *command(tmp_path)]) == 1
        assert told in capfd.readouterr().err
    expected.write_text(json.dumps({"smoke": {"fake": {"two": frozen["smoke"]["fake"]["one"]}}}))
    assert oddity.run.main(["--only", "fake", *command(tmp_path)]) == 1
    err = capfd.readouterr().err
    assert "fake, one: not in expected.json" in err
    assert "fake, two: no longer checked" in err


def test_a_claim_to_which_a_second_run_gave_another_verdict_may_have_either(oddity, experiments, tmp_path, capfd):
    oddity.run.main(["--only", "fake", *command(tmp_path, "--freeze")])
    second = json.loads((tmp_path / "out" / "fake.json").read_text())
    second["claims"][0] |= {"verdict": "partly", "value": 2.0, "ours": "2"}
    (tmp_path / "results" / "smoke-again").mkdir(parents=True)
    (tmp_path / "results" / "smoke-again" / "fake.json").write_text(json.dumps(second))
    assert oddity.run.main(["--only", "fake", *command(tmp_path, "--freeze")]) == 0
    assert json.loads((tmp_path / "expected.json").read_text())["smoke"]["fake"]["one"]["verdict"] == "reproduced"
    for value, code in ((2.05, 0), (1.0, 1)):  # the second verdict comes with the second number
        second["claims"][0]["value"] = value
        (tmp_path / "out" / "fake.json").write_text(json.dumps(second))
        capfd.readouterr()
        assert oddity.run.main(["--only", "fake", *command(tmp_path)]) == code
    assert "fake, one: expected 2 +- 0.1, found 1" in capfd.readouterr().err
    second["claims"][0]["verdict"] = "not reproduced"
    (tmp_path / "out" / "fake.json").write_text(json.dumps(second))
    assert oddity.run.main(["--only", "fake", *command(tmp_path)]) == 1


def test_the_readme_says_what_a_second_run_found_differently(oddity, experiments, tmp_path):
    oddity.run.main(["--only", "fake", *command(tmp_path, "--freeze")])
    page, other = tmp_path / "README.md", tmp_path / "out-again" / "fake.json"
    page.write_text("<!-- results: again -->\n<!-- end -->")
    second = json.loads((tmp_path / "out" / "fake.json").read_text()) | {"seconds": 120}
    other.parent.mkdir()
    for change, told in (
        ({}, "Of 1 claims 1 have the same verdict. In 1 the numbers"),
        ({"verdict": "partly", "value": 2.0, "ours": "2"}, "| Fake | one | **reproduced**: 1 | **partly**: 2 |"),
    ):
        second["claims"][0] |= change
        other.write_text(json.dumps(second))
        oddity.report.update(page, tmp_path / "out", ["fake", "broken"])
        assert told in page.read_text()
        assert "2 minutes" in page.read_text()
    assert "Of 1 claims 0 have the same verdict. In 0 the numbers" in page.read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"settings": {"tier": "smoke", "seeds": [9], "model": {"epochs": 1}}},
            "model.epochs 1 there, 2 now; .*seeds",
        ),
        ({"version": 0}, "is of version 0, this is version 1"),
        ({"format": "other"}, "is damaged or no result"),
    ],
)
def test_results_of_other_settings_or_versions_are_not_overwritten(oddity, experiments, tmp_path, capfd, change, told):
    oddity.run.main(["--only", "fake", *command(tmp_path, "--freeze")])
    path = tmp_path / "out" / "fake.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = path.read_bytes()
    assert oddity.run.main(["--only", "fake", *command(tmp_path)]) == 2
    assert path.read_bytes() == before
    err = capfd.readouterr().err
    assert re.search(told, err), err
    assert "give another --out" in err


def test_other_seeds_need_a_folder_of_their_own(oddity, experiments, tmp_path, capfd):
    assert oddity.run.main(["--only", "fake", "--seeds", "9"]) == 2
    assert "--seeds needs --out FOLDER" in capfd.readouterr().err
    assert oddity.run.main(["--only", "fake", "--seeds", "9", *command(tmp_path, "--freeze")]) == 2
    assert "exclude each other" in capfd.readouterr().err
    assert oddity.run.main(["--only", "fake", *command(tmp_path, "--workers", "0")]) == 2
    assert "--workers is 0: wanted 1 or more" in capfd.readouterr().err
    # there is nothing frozen to compare these with
    assert oddity.run.main(["--only", "fake", "--seeds", "9", *command(tmp_path)]) == 0
    assert json.loads((tmp_path / "out" / "fake.json").read_text())["settings"]["seeds"] == [9]


def test_settings_of_a_tier_replace_the_common_ones(oddity):
    full, smoke = (oddity.context.settings_of("fake", tier) for tier in ("full", "smoke"))
    assert (full["pairs"], full["seeds"], full["model"]) == (20, [5], {"epochs": 4})
    assert (smoke["pairs"], smoke["seeds"], smoke["model"]["epochs"]) == (10, [3], 2)
    assert (full["film"], smoke["film"]) == ({"side": 28}, {"side": 8})
    assert oddity.context.settings_of("other", "full", [100])["seeds"] == [100]


@pytest.mark.filterwarnings("ignore:all codes are nearly the same")  # so short a training
def test_models_of_other_precisions_share_encoder_and_mean_and_are_trained_once(oddity, tmp_path, monkeypatch):
    context = oddity.context.Context(
        "fake", oddity.context.settings_of("fake", "smoke"), tmp_path / "cache", quiet=True
    )
    images = context.images([0, 1], 30)
    assert (len(images), images.sample_shape) == (60, (8, 8))
    assert torch.equal(images.labels.bincount(), torch.tensor([30, 30]))
    paper, wall = context.model(images, 3), context.model(images, 3, rbf_bandwidth=1.0)
    assert all(torch.equal(a, b) for a, b in zip(paper.vae.parameters(), wall.vae.parameters(), strict=True))
    assert float(wall.rbf.bandwidths[0] / paper.rbf.bandwidths[0]) == pytest.approx(4)
    monkeypatch.setattr(oddity.context.datasets, "digits", None)
    monkeypatch.setattr("pullback.models.vae.VAE.loss", None)
    assert torch.equal(context.model(images, 3, rbf_bandwidth=1.0).codes, wall.codes)
    with pytest.raises(TypeError):  # another seed is another model
        context.model(images, 4)


def test_samples_are_drawn_from_each_class_by_the_seed(oddity):
    x = torch.arange(20.0)[:, None]
    dataset = Dataset(x, (torch.arange(20) % 2).long(), (1,), "toy")
    few = oddity.context.sampled(dataset, 3, 0)
    assert few.labels is not None
    assert few.labels.bincount().tolist() == [3, 3]
    assert torch.equal(few.samples, oddity.context.sampled(dataset, 3, 0).samples)
    assert not torch.equal(few.samples, oddity.context.sampled(dataset, 3, 1).samples)
    assert sorted(oddity.context.sampled(dataset, None, 0).samples[:, 0].tolist()) == list(range(20))


def test_parts_of_other_settings_or_other_code_are_computed_again(oddity, tmp_path):
    def context(pairs):
        return oddity.context.Context("fake", {"tier": "smoke", "pairs": pairs}, tmp_path / "cache", quiet=True)

    def part(pairs):
        oddity.context.code.cache_clear()
        return context(pairs).once("part", lambda: {"pairs": pairs, "made": next(made)})["made"]

    made = iter(range(9))
    assert [part(1), part(1), part(2), part(1)] == [0, 0, 1, 0]
    for name, again in (("report.py", False), ("some_figure.py", False), ("clusters.py", True)):
        (tmp_path / name).write_text("x = 1\n")
        assert (part(1) != 0) == again
    assert 0 <= context(1).seconds() < 1


def test_a_part_that_is_not_finite_is_an_error(oddity, tmp_path):
    context = oddity.context.Context("fake", {"tier": "smoke"}, tmp_path, quiet=True)
    with pytest.raises(ValueError, match="not JSON compliant"):
        context.once("part", lambda: {"value": float("nan")})


def test_the_readme_takes_its_numbers_from_the_records(oddity, experiments, tmp_path):
    oddity.run.main(["--only", "fake", *command(tmp_path, "--freeze")])
    page = tmp_path / "README.md"
    page.write_text(
        "a\n<!-- results: overview -->\nold\n<!-- end -->\nb\n<!-- results: fake -->\n<!-- end -->\nc\n"
        "<!-- results: broken -->\n<!-- end -->"
    )
    for _ in range(2):  # it can be done again
        oddity.report.update(page, tmp_path / "out", ["fake", "broken"])
        text = page.read_text()
        assert "| Fake | one |  |  | one: 1 |" in text
        assert "| one | one is one | 1 | 1 | **reproduced** |" in text
        assert "Of 1 claims: 1 reproduced, 0 partly, 0 not reproduced." in text
        assert "![ours](out/fake.png)" in text
        assert "1 of 4 solves failed" in text
        assert "old" not in text
        assert "<!-- results: broken -->\n*Not run yet.*\n<!-- end -->" in text
    assert text.count("- so") == 1
