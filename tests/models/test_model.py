"""What holds for every model that `fit` trains: written once, run for each."""

import pytest
import torch

import pullback as pb
from pullback import io
from pullback.datasets import Dataset
from pullback.models import VAE, Autoencoder, DecoderEnsemble, loop, model

pytestmark = pytest.mark.filterwarnings("ignore::pullback.models.CollapseWarning")  # so few epochs

COUNTS = ("poisson", "negative_binomial")
KINDS = ["ae sigmoid", "ae linear", "gaussian", "gaussian linear", "bernoulli", *COUNTS, "ensemble", "ensemble linear"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def build(kind, generator=None, hidden=(8, 5)):
    options = {"hidden": hidden, "generator": generator or seeded(9)}
    if kind.endswith(("sigmoid", "linear")):
        options["output"] = kind.split()[1]
    if kind.startswith("ae"):
        return Autoencoder(6, **options)
    if kind.startswith("ensemble"):
        return DecoderEnsemble(6, members=3, **options)
    return VAE(6, likelihood=kind.split()[0], output_std=0.1, **options)


def data_for(kind, dataset):
    if kind.startswith(COUNTS):
        return Dataset((20 * dataset.samples).round() + 1, dataset.labels, dataset.sample_shape, "counts")
    if kind.endswith("linear"):
        return Dataset(30 * dataset.samples - 7, dataset.labels, dataset.sample_shape, "wide")
    return dataset


def fit(built, data, folder=None, **settings):
    """A short training, whatever the model."""
    codes = ()
    if isinstance(built, DecoderEnsemble):
        codes = (torch.stack([data.samples[:, 0], data.samples[:, 1:].sum(1)], 1), 0.1 * torch.ones(len(data), 2))
    return built.fit(data, *codes, folder=folder, **{"epochs": 4, "batch_size": 16, "learning_rate": 0.01, **settings})


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupt_after(monkeypatch, calls, error=KeyboardInterrupt):
    """Stop a training in the middle of an epoch, after so many steps."""

    def stopped(samples, step, **keywords):
        done = []

        def counted(x, epoch):
            value = step(x, epoch)
            done.append(epoch)
            if len(done) == calls:
                raise error
            return value

        return loop.fit(samples, counted, **keywords)

    monkeypatch.setattr(model, "fit", stopped)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_a_training_leaves_eval_mode_and_a_finite_history_that_falls(kind, dataset):
    trained = fit(build(kind), data_for(kind, dataset), epochs=12)
    assert not any(module.training for module in trained.modules())
    assert len(trained.history) == 12
    assert all(isinstance(loss, float) and loss == loss for loss in trained.history)
    if not isinstance(trained, VAE):  # there the divergence is still being warmed up
        assert trained.history[-1] < 0.9 * trained.history[0]


def test_an_interrupted_and_resumed_training_ends_bit_for_bit_like_an_uninterrupted_one(
    kind, dataset, tmp_path, monkeypatch
):
    data = data_for(kind, dataset)
    whole = fit(build(kind), data)
    for calls in (1, 4, 10):  # an epoch has four steps
        with monkeypatch.context() as patch:
            interrupt_after(patch, calls)
            with pytest.raises(KeyboardInterrupt):
                fit(build(kind), data, tmp_path / str(calls))
        resumed = fit(build(kind, seeded(4)), data, tmp_path / str(calls))
        assert same(whole, resumed)
        assert whole.history == resumed.history


def test_after_an_interruption_the_model_is_that_of_the_last_finished_epoch(kind, dataset, monkeypatch):
    data = data_for(kind, dataset)
    stopped = build(kind)
    options = {"warmup": 0.0} if isinstance(stopped, VAE) else {}  # a share of all epochs, and these are fewer
    short = fit(build(kind), data, epochs=2, **options)
    interrupt_after(monkeypatch, 10)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, data, **options)
    assert same(short, stopped)
    assert not stopped.training


def test_the_seed_alone_decides_about_the_weights(kind, dataset):
    data = data_for(kind, dataset)
    first, second = (fit(build(kind, seeded(i)), data, seed=3) for i in (1, 2))
    other = fit(build(kind, seeded(1)), data, seed=4)
    assert same(first, second)
    assert not same(first, other)
    assert same(first, fit(other, data, seed=3))  # a second training begins anew


def test_the_global_random_state_is_not_touched(kind, dataset, tmp_path):
    built = build(kind)
    before = torch.get_rng_state()
    fit(built, data_for(kind, dataset), tmp_path).save(tmp_path)
    type(built).load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_saved_model_is_loaded_bit_for_bit(kind, dataset, tmp_path):
    trained = fit(build(kind), data_for(kind, dataset), seed=5)
    trained.save(tmp_path)
    loaded = type(trained).load(tmp_path)
    assert same(trained, loaded)
    assert not loaded.training
    assert loaded.settings == trained.settings
    assert loaded.history == trained.history
    assert loaded.run["seed"] == 5
    assert loaded.run["training"]["epochs"] == 4
    double = fit(build(kind).double(), data_for(kind, dataset))
    double.save(tmp_path)
    assert same(double, type(trained).load(tmp_path))


def test_other_settings_in_the_folder_are_refused_and_nothing_changes(kind, dataset, tmp_path):
    data = data_for(kind, dataset)
    fit(build(kind), data, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    changed = Dataset(data.samples.flip(0), data.labels, data.sample_shape, data.name)
    trials = [
        ({"learning_rate": 0.02}, data, "training: learning_rate 0.01 there, 0.02 now"),
        ({"seed": 1}, data, "seed 0 there, 1 now"),
        ({}, changed, "dataset: sha256"),
    ]
    for options, other, message in trials:
        untouched = build(kind, seeded(2))
        with pytest.raises(ValueError, match=f"holds a run with other .*{message}.*choose another folder"):
            fit(untouched, other, tmp_path, **options)
        assert same(untouched, build(kind, seeded(2)))
    with pytest.raises(ValueError, match=r"settings: hidden \[8, 5\] there, \[7\] now"):
        fit(build(kind, hidden=(7,)), data, tmp_path)
    with pytest.raises(ValueError, match="other model"):
        fit(build("gaussian linear" if kind.startswith("ae") else "ae linear"), data, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith("linear")], indirect=True)
def test_a_loss_that_becomes_infinite_leaves_the_last_good_state(kind, dataset, tmp_path):
    # four steps an epoch: the first loss is finite, a later one is not
    data, wild = data_for(kind, dataset), build(kind)
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch \d, batch \d: lower `learning_rate`"):
        fit(wild, data, tmp_path, learning_rate=1e30)
    assert all(bool(tensor.isfinite().all()) for tensor in wild.state_dict().values())
    tensors, record = io.load_tensors(tmp_path / loop.CHECKPOINT, format=loop.FORMAT, version=loop.VERSION)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())
    assert record["run"]["training"]["learning_rate"] == 1e30


def test_data_that_cannot_be_trained_on_are_refused_before_anything_is_written(kind, dataset, tmp_path):
    data = data_for(kind, dataset)
    holes = data.samples.clone()
    holes[3, 2] = torch.nan
    bad = [
        (Dataset(holes, None, (6,), "holes"), "`dataset` holds NaN or inf"),
        (Dataset(data.samples[:1].repeat(20, 1), None, (6,), "constant"), "`dataset` holds 20 times the same sample"),
        (
            Dataset(data.samples[:, :5], None, (5,), "narrow"),
            "samples of 5 numbers, but the model takes 6: set data_dim=5",
        ),
    ]
    if not kind.endswith(("linear", *COUNTS)):
        bad.append((Dataset(2 * data.samples, None, (6,), "wide"), "only from 0 to 1: scale the samples"))
    if kind in COUNTS:
        bad.append((Dataset(data.samples / 2, None, (6,), "halves"), r"`dataset` holds .*\.5: wanted counts, whole"))
        bad.append((Dataset(-data.samples, None, (6,), "negative"), "`dataset` holds -.*: wanted counts"))
        empty = data.samples.clone()
        empty[4:6] = 0
        bad.append(
            (Dataset(empty, None, (6,), "empty"), "2 samples without any count: remove them, or set shares=False")
        )
    untouched = build(kind)
    for wrong, message in bad:
        with pytest.raises(ValueError, match=message):
            fit(untouched, wrong, tmp_path / "run")
    for name, value in (("learning_rate", 0.0), ("learning_rate", float("nan")), ("epochs", 0), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"`{name}` is {value}: wanted a"):
            fit(untouched, data, tmp_path / "run", **{name: value})
    assert same(untouched, build(kind))
    assert not (tmp_path / "run").exists()


def test_linear_models_are_models_of_the_data_in_their_own_units(dataset):
    # grams or kilograms, with or without an offset: the same codes, and means in the new units
    plain = Dataset(30 * dataset.samples - 7, None, (6,), "plain")
    wide = Dataset(1024 * plain.samples + 5000, None, (6,), "wide")
    z = torch.randn(5, 2, dtype=torch.float64, generator=seeded())
    a, b = (fit(build("ae linear").double(), data, epochs=20) for data in (plain, wide))
    assert torch.allclose(a.encode(plain.samples.double()), b.encode(wide.samples.double()), atol=1e-3)
    assert torch.allclose((b.decoder(z) - 5000) / 1024, a.decoder(z), atol=1e-2)
    va, vb = (
        VAE(6, hidden=(8, 5), output="linear", output_std=std).double().fit(data, epochs=20, batch_size=16)
        for data, std in ((plain, 3.0), (wide, 3.0 * 1024))
    )
    assert torch.allclose(va.encode(plain.samples.double())[0], vb.encode(wide.samples.double())[0], atol=1e-3)
    assert torch.allclose((vb.decoder(z) - 5000) / 1024, va.decoder(z), atol=1e-2)
    assert va.history == pytest.approx(vb.history, rel=1e-3)  # in nats, without units


def test_geometry_runs_on_every_trained_model(kind, dataset):
    data = data_for(kind, dataset)
    trained = fit(build(kind), data, epochs=12).double()
    decoder = pb.Ensemble(list(trained.decoders)) if isinstance(trained, DecoderEnsemble) else trained.decoder
    metric = pb.Pullback(decoder)
    z = torch.tensor([[-0.5, 0.3], [0.6, -0.2]], dtype=torch.float64)
    assert bool((torch.linalg.eigvalsh(metric.matrix(z)) > 0).all())
    path = pb.geodesic(metric, z[0], z[1])
    assert bool(path.converged)
    assert float(path.length) <= float(pb.length(metric, pb.Curve.straight(z[0], z[1], 64))) * (1 + 1e-6)


def test_a_model_that_is_not_there_or_unusable_is_one_clear_error(kind, dataset, tmp_path):
    trained = build(kind)
    with pytest.raises(FileNotFoundError, match=r"there is no model\.safetensors in .*; give the folder that `save`"):
        type(trained).load(tmp_path)
    trained.save(tmp_path)
    path, form = tmp_path / model.FILE, {"format": trained.FORMAT, "version": 1}
    tensors, record = io.load_tensors(path, **form)
    lost = dict(list(tensors.items())[1:])
    wrong = {**record, "settings": {**record["settings"], "hidden": [9, 5]}}
    unknown = {**record, "settings": {**record["settings"], "depth": 3}}
    for kept in ((lost, record), (tensors, wrong), (tensors, unknown), (tensors, {})):
        io.save_tensors(path, *kept, **form)
        with pytest.raises(ValueError, match=r"model\.safetensors has an unusable record .*train the model again"):
            type(trained).load(tmp_path)
    other = VAE if isinstance(trained, Autoencoder) else Autoencoder
    with pytest.raises(ValueError, match="has format 'pullback"):
        other.load(tmp_path)
