import dataclasses
import subprocess
import sys
import textwrap

import pytest
import torch

from pullback import datasets, io
from pullback.datasets import Dataset
from pullback.models import VAE, CollapseWarning, RBFPrecision, TrainingSettings, load, loop, train, training

CHECKPOINT = {"format": loop.FORMAT, "version": loop.VERSION}


def same(a, b):
    """Whether two models have the same tensors, bit for bit."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt_at(monkeypatch, owner, call):
    """Let the loss of a stage raise KeyboardInterrupt the n-th time it is asked for."""
    loss, calls = owner.loss, 0

    def counted(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return loss(*arguments, **keywords)

    monkeypatch.setattr(owner, "loss", counted)


def test_a_training_leaves_a_model_that_loads_and_no_checkpoint(tmp_path, dataset, settings):
    model = train(dataset, tmp_path / "run", settings=settings, seed=3)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["model.json", "model.safetensors"]
    assert same(model, load(tmp_path / "run"))
    record = io.load_json(tmp_path / "run" / "model.json", format="pullback.rbfvae", version=1)
    assert record["seed"] == 3
    assert record["dataset"]["name"] == "toy"
    assert len(record["history"]["vae"]) == 6
    assert len(record["history"]["rbf"]) == 4


def test_the_codes_kept_with_a_model_are_those_that_it_gives(tmp_path, dataset, settings):
    model = train(dataset, tmp_path, settings=settings)
    assert torch.equal(model.codes, model.encode(dataset.samples))
    assert torch.equal(model.labels, dataset.labels)
    assert model.sample_shape == (2, 3)


def test_of_many_samples_an_even_selection_of_codes_is_kept(tmp_path, dataset, settings, monkeypatch):
    monkeypatch.setattr(training, "_MAX_CODES", 20)
    model = train(dataset, tmp_path, settings=settings)
    assert torch.equal(model.codes, model.encode(dataset.samples[::3]))
    assert torch.equal(model.labels, dataset.labels[::3])


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path, dataset, settings):
    first, second, other = (
        train(dataset, tmp_path / str(i), settings=settings, seed=seed) for i, seed in enumerate((1, 1, 2))
    )
    assert same(first, second)
    assert not torch.equal(first.codes, other.codes)


@pytest.mark.parametrize(
    ("owner", "call"),
    [(VAE, 1), (VAE, 2), (VAE, 4 * 3 + 2), (VAE, 4 * 6), (RBFPrecision, 1), (RBFPrecision, 4 * 2 + 3)],
    ids=["at once", "first epoch", "middle", "last step", "between the stages", "precision"],
)
def test_an_interrupted_and_resumed_training_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path, dataset, settings, monkeypatch, owner, call
):
    whole = train(dataset, tmp_path / "whole", settings=settings)
    with monkeypatch.context() as patch:
        interrupt_at(patch, owner, call)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, tmp_path / "parts", settings=settings)
    with pytest.raises(FileNotFoundError, match="interrupted: run it again to go on"):
        load(tmp_path / "parts")
    resumed = train(dataset, tmp_path / "parts", settings=settings)
    assert same(whole, resumed)
    names = ("model.safetensors", "model.json")
    assert all((tmp_path / "whole" / n).read_bytes() == (tmp_path / "parts" / n).read_bytes() for n in names)


def test_an_interruption_keeps_all_finished_epochs(tmp_path, dataset, settings, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, VAE, 4 * 3 + 2)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, tmp_path, settings=settings)
    assert len(training_history(tmp_path)) == 3


def test_a_training_that_is_interrupted_again_and_again_arrives(tmp_path, dataset, settings, monkeypatch):
    whole = train(dataset, tmp_path / "whole", settings=settings)
    for done in range(1, 6):
        with monkeypatch.context() as patch:
            interrupt_at(patch, VAE, 6)  # an epoch has four steps
            with pytest.raises(KeyboardInterrupt):
                train(dataset, tmp_path / "parts", settings=settings)
        assert len(training_history(tmp_path / "parts")) == done
    assert same(whole, train(dataset, tmp_path / "parts", settings=settings))


def training_history(folder):
    return io.load_tensors(folder / loop.CHECKPOINT, **CHECKPOINT)[1]["history"]


def test_a_killed_process_loses_no_more_than_the_time_between_checkpoints(tmp_path, dataset, settings):
    script = f"""
        import os, torch
        from pullback.datasets import Dataset
        from pullback.models import VAE, TrainingSettings, loop, train
        loop._SECONDS = 0.0
        calls, loss = 0, VAE.loss
        def counted(*arguments, **keywords):
            global calls
            calls += 1
            if calls == 4 * 3 + 2:
                os._exit(9)                       # as by SIGKILL: nothing is cleaned up
            return loss(*arguments, **keywords)
        VAE.loss = counted
        samples, labels = torch.load({str(tmp_path / "data.pt")!r}, weights_only=True)
        train(Dataset(samples, labels, (2, 3), "toy"), {str(tmp_path / "parts")!r}, settings={settings!r})
    """
    torch.save((dataset.samples, dataset.labels), tmp_path / "data.pt")
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert killed.returncode == 9, killed.stderr.decode()
    assert len(training_history(tmp_path / "parts")) == 3
    whole = train(dataset, tmp_path / "whole", settings=settings)
    assert same(whole, train(dataset, tmp_path / "parts", settings=settings))


def test_a_finished_run_is_returned_without_training(tmp_path, dataset, settings, monkeypatch):
    model = train(dataset, tmp_path, settings=settings)
    interrupt_at(monkeypatch, VAE, 1)
    assert same(model, train(dataset, tmp_path, settings=settings))


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_with_another_run_is_refused_and_left_alone(tmp_path, dataset, settings, monkeypatch, finished):
    with monkeypatch.context() as patch:
        if not finished:
            interrupt_at(patch, VAE, 10)
            with pytest.raises(KeyboardInterrupt):
                train(dataset, tmp_path, settings=settings)
        else:
            train(dataset, tmp_path, settings=settings)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    changed = Dataset(dataset.samples.flip(0), dataset.labels, dataset.sample_shape, dataset.name)
    others = [
        (dataset, dataclasses.replace(settings, epochs=7), 0, "settings"),
        (dataset, settings, 1, "seed 0 there, 1 now"),
        (changed, settings, 0, "dataset"),
    ]
    for data, other, seed, message in others:
        with pytest.raises(ValueError, match=f"holds a run with other {message}.*choose another folder"):
            train(data, tmp_path, settings=other, seed=seed)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_resume_a_run_begins_anew_and_an_interruption_leaves_no_old_model(
    tmp_path, dataset, settings, monkeypatch
):
    train(dataset, tmp_path, settings=settings, seed=1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, VAE, 1)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, tmp_path, settings=settings, seed=2, resume=False)
    with pytest.raises(FileNotFoundError):
        load(tmp_path)
    other = train(dataset, tmp_path, settings=settings, seed=2, resume=False)
    assert same(other, train(dataset, tmp_path / "fresh", settings=settings, seed=2))


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, dataset, settings):
    (tmp_path / loop.CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is not a safetensors file"):
        train(dataset, tmp_path, settings=settings)


@pytest.mark.parametrize(
    ("stage", "lost"),
    [(VAE, lost) for lost in ("run", "history", "optimizers", "generator", "module.vae.", "optimizer.")]
    + [(RBFPrecision, lost) for lost in ("module.rbf.weight", "module.rbf.centers", "optimizer.rbf.0.exp_avg")],
)
def test_a_checkpoint_that_lacks_something_is_one_clear_error(tmp_path, dataset, settings, monkeypatch, stage, lost):
    with monkeypatch.context() as patch:
        interrupt_at(patch, stage, 6)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, tmp_path, settings=settings)
    path = tmp_path / loop.CHECKPOINT
    tensors, record = io.load_tensors(path, **CHECKPOINT)
    kept = [{name: part[name] for name in part if not name.startswith(lost)} for part in (tensors, record)]
    assert kept != [tensors, record]
    io.save_tensors(path, *kept, **CHECKPOINT)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is no checkpoint .* .*--no-resume"):
        train(dataset, tmp_path, settings=settings)
    train(dataset, tmp_path, settings=settings, resume=False)


def test_of_the_settings_of_another_run_only_those_that_differ_are_named(tmp_path, dataset, settings):
    train(dataset, tmp_path, settings=settings)
    with pytest.raises(ValueError, match="other") as refused:
        train(dataset, tmp_path, settings=dataclasses.replace(settings, epochs=7))
    assert str(refused.value) == (
        f"`folder` {tmp_path} holds a run with other settings: epochs 6 there, 7 now: "
        "choose another folder, or overwrite it with resume=False (--no-resume)"
    )


def test_the_global_random_state_is_not_touched(tmp_path, dataset, settings):
    import random

    import numpy as np

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    train(dataset, tmp_path, settings=settings)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_the_second_stage_changes_the_weights_of_the_precision_and_nothing_else(tmp_path, dataset, settings):
    short, long = (
        train(dataset, tmp_path / str(n), settings=dataclasses.replace(settings, rbf_epochs=n)).state_dict()
        for n in (1, 4)
    )
    changed = {name for name in short if not torch.equal(short[name], long[name])}
    assert changed == {"rbf.weight", "decoder.std.weight"}


@pytest.mark.filterwarnings("ignore::pullback.models.CollapseWarning")  # after one epoch
def test_the_first_stage_changes_every_parameter_of_encoder_and_mean(tmp_path, dataset, settings):
    short, long = (
        train(dataset, tmp_path / str(n), settings=dataclasses.replace(settings, epochs=n)).vae.state_dict()
        for n in (1, 2)
    )
    assert all(not torch.equal(short[name], long[name]) for name in short)


@pytest.mark.parametrize(("output", "tolerance"), [("sigmoid", 0.0), ("linear", 1e-2)])
def test_a_precision_for_a_trained_mean_is_that_of_a_training_in_one_go(
    tmp_path, dataset, settings, monkeypatch, output, tolerance
):
    # the same centers and, since noise and batches are drawn anew, nearly the same precision
    settings = dataclasses.replace(settings, output=output, rbf_epochs=60)
    whole = train(dataset, tmp_path / "whole", settings=settings)
    monkeypatch.setattr(VAE, "loss", None)  # must not be trained again
    wide = dataclasses.replace(settings, rbf_bandwidth=1.0)
    same_a = train(dataset, tmp_path / "same", settings=settings, vae=whole.vae)
    other_a = train(dataset, tmp_path / "other", settings=wide, vae=whole.vae)
    for model in (same_a, other_a):
        assert same(model.vae, whole.vae)
        assert torch.allclose(model.rbf.centers, whole.rbf.centers, rtol=tolerance, atol=tolerance)
    assert float((same_a.rbf(whole.codes) / whole.rbf(whole.codes)).log().abs().mean()) < 0.2
    assert torch.allclose(other_a.rbf.bandwidths, 4 * whole.rbf.bandwidths, rtol=1e-2)
    with pytest.raises(ValueError, match="holds a run with other vae"):
        train(dataset, tmp_path / "whole", settings=settings, vae=whole.vae)


def test_a_mean_that_does_not_fit_is_refused(tmp_path, dataset, settings):
    vae = VAE(6, 2, (8, 4))
    with pytest.raises(ValueError, match=r"`vae` has hidden \[8, 4\], not \[8, 5\]: give one"):
        train(dataset, tmp_path, settings=settings, vae=vae)


def test_the_weights_of_the_precision_stay_non_negative(tmp_path, dataset, settings):
    model = train(dataset, tmp_path, settings=dataclasses.replace(settings, rbf_epochs=30, rbf_learning_rate=300.0))
    assert float(model.rbf.weight.min()) == 0


@pytest.mark.filterwarnings("ignore::pullback.models.CollapseWarning")  # after two epochs
def test_the_divergence_is_warmed_up_over_the_chosen_share_of_the_epochs(tmp_path, dataset, settings, monkeypatch):
    weights = []
    loss = VAE.loss

    def noted(self, x, *, warmup, **keywords):
        weights.append(warmup)
        return loss(self, x, warmup=warmup, **keywords)

    monkeypatch.setattr(VAE, "loss", noted)
    train(dataset, tmp_path / "a", settings=dataclasses.replace(settings, epochs=6, warmup=0.5, batch_size=60))
    assert weights == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])
    weights.clear()
    train(dataset, tmp_path / "b", settings=dataclasses.replace(settings, epochs=2, warmup=0.0, batch_size=60))
    assert weights == [1, 1]


def test_both_losses_fall_on_real_digits_and_the_codes_fill_a_unit_gaussian(tmp_path):
    data = datasets.digits()
    data = data[data.labels < 3]
    settings = TrainingSettings(
        output_std=0.3, epochs=120, rbf_epochs=10, rbf_centers=16, batch_size=64, learning_rate=3e-3
    )
    model = train(data, tmp_path, settings=settings)
    history = io.load_json(tmp_path / "model.json", format="pullback.rbfvae", version=1)["history"]
    assert history["vae"][-1] < 0.6 * history["vae"][0]
    assert history["rbf"][-1] < history["rbf"][0] - 5
    covariance = model.codes.T.cov()
    assert torch.allclose(covariance, torch.eye(2, dtype=torch.float64), atol=0.35)
    sigma = model.rbf(model.codes)
    assert 0.02 < float(sigma.median()) < 0.3


def test_a_latent_dimension_that_collapsed_is_warned_of_with_the_remedy(tmp_path, dataset, settings):
    weak = dataclasses.replace(settings, output_std=10.0, epochs=30, warmup=0.0)
    with pytest.warns(CollapseWarning, match=r"the same in latent dimension 0, 1 .* set output_std below 10"):
        train(dataset, tmp_path, settings=weak)


def test_a_linear_model_follows_the_units_of_the_data(tmp_path, dataset, settings):
    # grams or kilograms, with or without an offset: the same codes, mean and standard deviation in the new units
    z = torch.randn(5, 2, dtype=torch.float64)
    models = []
    for i, (shift, scale) in enumerate([(0.0, 1.0), (3.0, 2.0**10), (-0.25, 2.0**-10)]):
        data = Dataset(scale * (dataset.samples + shift), None, dataset.sample_shape, "toy")
        linear = dataclasses.replace(settings, output="linear", epochs=30, rbf_epochs=10)
        models.append((shift, scale, data, train(data, tmp_path / str(i), settings=linear)))
    _, _, _, plain = models[0]
    for shift, scale, data, model in models:
        assert torch.allclose(model.codes, plain.codes, atol=1e-2)
        assert torch.allclose(model.encode(data.samples), model.codes, atol=1e-9)
        assert torch.allclose(model.vae.decoder(z) / scale - shift, plain.vae.decoder(z), atol=1e-2)
        assert torch.allclose(model.rbf(z) / scale, plain.rbf(z), rtol=1e-2)


def test_a_linear_model_decodes_to_the_units_of_the_data(tmp_path, dataset, settings):
    wide = Dataset(100 * dataset.samples + 1000, None, dataset.sample_shape, "wide")
    model = train(wide, tmp_path, settings=dataclasses.replace(settings, epochs=100))
    residual = model.vae.decoder(model.codes) - wide.samples
    assert float(residual.square().mean().sqrt()) < float(wide.samples.std(0).mean())
    assert float(model.rbf(model.codes).median()) == pytest.approx(float(residual.std()), rel=0.5)


def test_data_outside_of_the_unit_interval_get_a_linear_output(tmp_path, dataset, settings):
    wide = Dataset(10 * dataset.samples - 5, dataset.labels, dataset.sample_shape, "wide")
    assert train(dataset, tmp_path / "a", settings=settings).settings.output == "sigmoid"
    assert train(wide, tmp_path / "b", settings=settings).settings.output == "linear"
    with pytest.raises(ValueError, match=r"reaches from .* but a sigmoid only from 0 to 1: scale the samples"):
        train(wide, tmp_path / "c", settings=dataclasses.replace(settings, output="sigmoid"))


def test_data_without_labels_are_fine(tmp_path, dataset, settings):
    bare = Dataset(dataset.samples, None, dataset.sample_shape, "bare")
    assert train(bare, tmp_path, settings=settings).labels is None
    assert load(tmp_path).labels is None


def test_data_that_cannot_be_trained_on_are_refused_before_anything_is_written(tmp_path, dataset, settings):
    holes = dataset.samples.clone()
    holes[3, 2] = torch.nan
    bad = [
        (Dataset(holes, None, (2, 3), "holes"), "`dataset` holds NaN or inf"),
        (Dataset(torch.ones(20, 6), None, (6,), "constant"), "`dataset` holds 20 times the same sample"),
        (dataset[:4], "`dataset` has 4 samples, but `rbf_centers` is 5: set rbf_centers to at most 4"),
    ]
    for data, message in bad:
        with pytest.raises(ValueError, match=message):
            train(data, tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_becomes_infinite_is_an_error_that_says_what_to_do(tmp_path, dataset, settings):
    wild = dataclasses.replace(settings, output="linear", learning_rate=1e30)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch \d, batch \d: lower `learning_rate`"):
        train(dataset, tmp_path, settings=wild)


def test_a_folder_that_cannot_be_written_is_found_before_the_training(tmp_path, dataset, settings, monkeypatch):
    interrupt_at(monkeypatch, VAE, 1)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write .* choose a folder you can write to"):
        train(dataset, tmp_path / "file" / "run", settings=settings)


def test_progress_is_shown_on_request_only_and_never_on_the_standard_output(tmp_path, dataset, settings, capfd):
    train(dataset, tmp_path / "a", settings=settings)
    assert capfd.readouterr() == ("", "")
    train(dataset, tmp_path / "b", settings=settings, progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "10/10" in shown.err
