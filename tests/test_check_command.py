import json

import matplotlib
import numpy as np
import pytest
import torch

from pullback import cli, io, models
from pullback.commands import check, inputs, latent
from pullback.datasets import Dataset, digits
from pullback.diagnostics import Verdict
from pullback.metrics import FisherRao, Pullback

matplotlib.use("Agg")

SMALL = {"hidden": (8, 6)}
FAST = ("--pairs", 12)


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def counts() -> Dataset:
    """Digits as whole numbers."""
    data = digits()
    return Dataset((data.samples * 16).round(), data.labels, data.sample_shape, data.name)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


UNTRAINED = {
    "autoencoder": lambda: models.Autoencoder(64, **SMALL, generator=generator()),
    "vae": lambda: models.VAE(64, **SMALL, generator=generator()),
    "vae-bernoulli": lambda: models.VAE(64, **SMALL, likelihood="bernoulli", generator=generator()),
    "vae-poisson": lambda: models.VAE(64, **SMALL, likelihood="poisson", shares=False, generator=generator()),
    "ensemble": lambda: models.DecoderEnsemble(64, **SMALL, members=3, generator=generator()),
    "gan": lambda: models.GAN((8, 8), **SMALL, generator=generator()),
    "convolutional": lambda: models.ConvolutionalVAE((8, 8), n_centers=4, generator=generator()),
}


@pytest.fixture
def codes(tmp_path):
    """A file with the codes of nobody in particular."""
    path = tmp_path / "codes.npy"
    np.save(path, np.random.default_rng(0).normal(size=(150, 2)))
    return path


@pytest.fixture
def saved(tmp_path):
    """A folder with an autoencoder."""
    UNTRAINED["autoencoder"]().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_pictures(monkeypatch):
    """They take longer than all the rest."""
    monkeypatch.setattr(check, "save_figure", lambda path, figure: path.write_bytes(b""))


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind == "convolutional")) for kind in UNTRAINED]
)
def test_every_kind_of_saved_model_can_be_checked(kind, codes, tmp_path, capsys, no_pictures):
    model = UNTRAINED[kind]()
    model.save(tmp_path / "model")
    code = run("check", tmp_path / "model", "--codes", codes, "--out", tmp_path / "out", *FAST)
    out, err = capsys.readouterr()
    assert "error" not in err
    record = io.load_json(tmp_path / "out" / "report.json", format="pullback.check", version=1)
    assert code == (check.DOUBTFUL if record["verdict"] == Verdict.NOT_BELIEVABLE.value else 0)
    assert record["lines"]["n_pairs"] == 12
    assert record["n_codes"] == 150
    assert out.lower().startswith(record["sentence"][:40])


@pytest.mark.parametrize("kind", UNTRAINED)
def test_any_saved_model_is_loaded_as_what_it_was(kind, tmp_path):
    model = UNTRAINED[kind]()
    model.save(tmp_path)
    loaded = models.load(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.settings == model.settings
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert io.format_of(tmp_path / "model.safetensors") == model.FORMAT


def test_the_format_of_a_foreign_file_is_unknown(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not at all")
    assert io.format_of(tmp_path / "model.safetensors") is None
    with pytest.raises(ValueError, match="not a safetensors file"):
        models.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("autoencoder", Pullback), ("convolutional", Pullback), ("vae", Pullback), ("gan", Pullback),
     ("ensemble", Pullback), ("vae-bernoulli", FisherRao), ("vae-poisson", FisherRao)],
)  # fmt: skip
def test_a_model_has_the_metric_of_its_kind(kind, metric):
    found = latent.latent_of(UNTRAINED[kind]())
    assert type(found.metric) is metric
    assert found.dim == 2
    assert (found.codes is not None) == (kind == "gan")
    z = torch.zeros(3, 2, dtype=torch.float64)
    assert found.metric.matrix(z).dtype == torch.float64


def test_the_check_of_an_ensemble_sees_its_disagreement(codes, tmp_path, no_pictures):
    UNTRAINED["ensemble"]().save(tmp_path / "model")
    run("check", tmp_path / "model", "--codes", codes, "--out", tmp_path / "out", *FAST)
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["variance"]["kind"] == "ensemble"
    assert record["variance"]["on_data"] > 0.3  # members that have learned nothing agree in nothing


def test_the_folder_gets_text_numbers_and_pictures(saved, codes, tmp_path, capsys):
    folder = tmp_path / "deep" / "out"
    assert run("check", saved, "--codes", codes, "--out", folder, *FAST) == 0
    names = {"report.txt", "report.json", "growth.png", "ratios.png", "spectrum.png", "map.png"}
    assert {path.name for path in folder.iterdir()} == names
    out = capsys.readouterr().out
    text = (folder / "report.txt").read_text()
    assert out.startswith(text)
    assert all(name in out.splitlines()[-1] for name in names)
    for name in names:
        if name.endswith(".png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
    record = json.loads((folder / "report.json").read_text())
    assert record["model"] == str(saved)
    assert (record["format"], record["version"]) == ("pullback.check", 1)


def test_the_check_is_the_same_each_time_and_another_by_another_seed(saved, codes, tmp_path, no_pictures):
    texts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("check", saved, "--codes", codes, "--out", tmp_path / name, "--seed", seed, *FAST)
        texts.append((tmp_path / name / "report.txt").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_a_model_with_codes_needs_none(tmp_path, no_pictures):
    assert run("check", "mnist012", "--out", tmp_path, "--pairs", 2) == 0
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["n_codes"] == 10000
    assert record["growth"]["verdict"] == "grows"


def test_a_generator_draws_its_codes_and_says_so(tmp_path, capsys, no_pictures):
    UNTRAINED["gan"]().save(tmp_path / "model")
    assert run("check", tmp_path / "model", "--out", tmp_path / "out", *FAST) == 0
    assert "2,000 codes are drawn from its prior" in capsys.readouterr().out


def test_a_dead_dimension_is_exit_code_1_and_has_no_map(codes, tmp_path, capsys):
    model = UNTRAINED["autoencoder"]()
    with torch.no_grad():
        model.decoder[0].weight[:, 1] = 0
    model.save(tmp_path / "model")
    assert run("check", tmp_path / "model", "--codes", codes, "--out", tmp_path / "out", *FAST) == 1
    assert "does not change along z_2" in capsys.readouterr().out
    assert not (tmp_path / "out" / "map.png").exists()
    assert (tmp_path / "out" / "spectrum.png").exists()


def test_other_dimensions_have_no_map(tmp_path, no_pictures):
    for d in (1, 3):
        models.Autoencoder(64, d, **SMALL, generator=generator()).save(tmp_path / f"model{d}")
        np.savez(tmp_path / "codes.npz", codes=np.random.default_rng(0).normal(size=(60, d)))
        folder = tmp_path / f"out{d}"
        assert run("check", tmp_path / f"model{d}", "--codes", tmp_path / "codes.npz", "--out", folder, *FAST) == 0
        assert (folder / "growth.png").exists()
        assert not (folder / "map.png").exists()


def test_codes_of_encode_bring_their_labels(tmp_path):
    z = np.random.default_rng(0).normal(size=(20, 2))
    np.savez(tmp_path / "codes.npz", codes=z, labels=np.arange(20))
    codes, labels = inputs.codes_in(str(tmp_path / "codes.npz"), 2)
    assert labels is not None
    assert labels.tolist() == list(range(20))
    np.save(tmp_path / "codes.npy", z.astype(np.float32))
    single, none = inputs.codes_in(str(tmp_path / "codes.npy"), 2)
    assert none is None
    assert single.dtype == torch.float64
    assert torch.allclose(single, codes, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("check {model} --out {tmp}/out", "MODEL is a Autoencoder, which keeps no codes: give --codes FILE"),
        ("check nowhere --out {tmp}/out", "neither a folder nor a shipped model"),
        ("check {tmp} --out {tmp}/out", "no model.safetensors"),
        ("check {model} --codes none.npy --out {tmp}/out", "no file none.npy with codes"),
        ("check {model} --codes {tmp}/wide.npy --out {tmp}/out", "wanted floats (n, 2)"),
        ("check {model} --codes {tmp}/whole.npy --out {tmp}/out", "dtype int64"),
        ("check {model} --codes {tmp}/half.npy --out {tmp}/out", "dtype float16"),
        ("check {model} --codes {tmp}/text.npy --out {tmp}/out", "cannot be read"),
        ("check {model} --codes {tmp}/several.npy --out {tmp}/out", "cannot be read"),
        ("check {model} --codes {tmp}/nan.npy --out {tmp}/out", "NaN or inf, the first in row 2"),
        ("check {model} --codes {tmp}/one.npy --out {tmp}/out", "`codes` holds 1 point"),
        ("check {model} --codes {tmp}/same.npy --out {tmp}/out", "9 times the same point"),
        ("check {model} --codes {tmp}/same.npy --out {tmp}/text.npy", "cannot write to"),
        ("encode {model} digits --out {tmp}/c.npz", "has format 'pullback.autoencoder'"),
    ],
)
def test_an_error_of_the_user_is_one_line_and_exit_code_2(arguments, message, saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nan = np.zeros((4, 2))
    nan[2, 1] = np.nan
    arrays = {"wide": np.zeros((4, 3)), "whole": np.arange(8).reshape(4, 2), "half": np.ones((4, 2), np.float16)}
    arrays |= {"nan": nan, "one": np.zeros((1, 2)), "same": np.ones((9, 2))}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "text.npy").write_text("0,1\n")
    with open(tmp_path / "several.npy", "wb") as file:
        np.savez(file, codes=np.zeros((4, 2)))
    assert run(*arguments.replace("{tmp}", str(tmp_path)).replace("{model}", str(saved)).split()) == 2
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("pullback: error: ")
    assert message in err
    assert "Traceback" not in out + err


def test_the_check_gives_the_threads_back(saved, codes, tmp_path, monkeypatch):
    during = []
    monkeypatch.setattr(check, "check_geometry", lambda *_, **__: during.append(torch.get_num_threads()) or 1 / 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError):
            run("check", saved, "--codes", codes, "--out", tmp_path)
        assert (during, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
