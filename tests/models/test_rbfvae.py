import pytest
import torch

from pullback import Gaussian, io
from pullback.models import RBFVAE, VAE, RBFPrecision, TrainingSettings, load
from pullback.models.rbfvae import FILE, FORMAT, VERSION


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(0)
    settings = TrainingSettings(latent_dim=3, hidden=(8, 5), output="linear", rbf_centers=4)
    vae = VAE(6, 3, (8, 5), output="linear", generator=generator)
    rbf = RBFPrecision(torch.randn(4, 3, generator=generator), torch.ones(4), 6, zeta=1e-9)
    codes = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    return RBFVAE(vae, rbf, settings=settings, sample_shape=(2, 3), codes=codes, labels=torch.arange(10))


def rewrite(folder, change, *, format=FORMAT, version=VERSION):
    """Load the file of a model, change its tensors and record, and write it back."""
    tensors, record = io.load_tensors(folder / FILE, format=FORMAT, version=VERSION)
    change(tensors, record)
    io.save_tensors(folder / FILE, tensors, record, format=format, version=version)


def test_a_model_comes_back_unchanged(tmp_path, model):
    model.save(tmp_path / "new", {"note": "x"})
    loaded = load(tmp_path / "new")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.settings == model.settings
    assert loaded.sample_shape == (2, 3)
    assert loaded.latent_dim == 3
    x = torch.rand(5, 6)
    assert torch.equal(loaded.encode(x), model.encode(x))
    assert torch.equal(loaded.decoder(model.codes), model.decoder(model.codes))


def test_a_loaded_model_is_ready_for_geometry(tmp_path, model):
    model.save(tmp_path)
    for ready in (model, load(tmp_path)):
        assert not any(module.training for module in ready.modules())
        assert not any(parameter.requires_grad for parameter in ready.parameters())
        assert {parameter.dtype for parameter in ready.parameters()} == {torch.float64}
        assert ready.codes.dtype == torch.float64


def test_the_decoder_is_mean_and_standard_deviation_stacked(model):
    assert isinstance(model.decoder, Gaussian)
    z = torch.randn(5, 3, dtype=torch.float64)
    assert torch.equal(model.decoder(z), torch.cat([model.vae.decoder(z), model.rbf(z)], -1))


def test_codes_are_the_means_of_the_encoder_and_any_sample_shape_is_taken(model):
    x = torch.rand(20, 6, dtype=torch.float64)
    expected = model.vae.encode(x)[0]
    assert torch.equal(model.encode(x), expected)
    assert torch.equal(model.encode(x.reshape(20, 2, 3)), expected)
    assert model.encode(x.float()).dtype == torch.float64
    assert model.encode(x[:0]).shape == (0, 3)


def test_many_samples_are_encoded_in_chunks_with_the_same_result(model, monkeypatch):
    x = torch.rand(20, 6, dtype=torch.float64)
    whole = model.encode(x)
    monkeypatch.setattr("pullback.models.rbfvae._CHUNK", 7)
    assert torch.allclose(model.encode(x), whole, rtol=1e-14)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(6), r"`x` has shape \(6,\): wanted \(n, 6\), or samples of shape \(2, 3\)"),
        (torch.rand(2, 3), r"`x` has shape \(2, 3\)"),
        (torch.rand(4, 5), r"`x` has shape \(4, 5\)"),
        (torch.rand(4, 3, 2), r"`x` has shape \(4, 3, 2\)"),
        (torch.tensor(1.0), r"`x` has shape \(\)"),
        (torch.ones(4, 6, dtype=torch.uint8), "`x` has dtype torch.uint8: wanted floats .* x / 255"),
        (torch.full((4, 6), torch.nan), "`x` holds NaN or inf"),
    ],
)
def test_samples_that_do_not_fit_are_refused(model, x, message):
    with pytest.raises(ValueError, match=message):
        model.encode(x)


def test_loading_does_not_touch_the_global_random_state(tmp_path, model):
    model.save(tmp_path)
    before = torch.get_rng_state()
    load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no model\.safetensors in .*nowhere; give the folder"):
        load(tmp_path / "nowhere")


def test_what_is_no_model_is_refused(tmp_path, model):
    model.save(tmp_path)
    (tmp_path / FILE).write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [({"format": "other"}, "has format 'other'; wanted 'pullback.rbfvae'"), ({"version": 99}, "update pullback")],
)
def test_another_format_or_a_newer_version_is_refused(tmp_path, model, kind, message):
    model.save(tmp_path)
    rewrite(tmp_path, lambda tensors, record: None, **kind)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, r: t.pop("vae.mean.bias"), r"lacks the tensors vae\.mean\.bias"),
        (lambda t, r: t.pop("rbf.weight"), r"lacks the tensors rbf\.weight"),
        (lambda t, r: t.pop("codes"), "lacks the tensors codes"),
        (lambda t, r: t.update(more=torch.zeros(1)), "do not belong there: more"),
        (lambda t, r: t.update(codes=torch.zeros(10, 2)), r"'codes' of shape \(10, 2\): wanted \(10, 3\)"),
        (lambda t, r: t.update(codes=torch.zeros(())), r"'codes' of shape \(\)"),
        (lambda t, r: t.update(labels=torch.zeros(9)), r"'labels' of shape \(9,\): wanted \(10,\)"),
        (lambda t, r: t.update({"rbf.zeta": torch.zeros(2)}), r"'rbf.zeta' of shape \(2,\): wanted \(\)"),
        (lambda t, r: t.update({"vae.mean.weight": torch.zeros(3, 4)}), r"of shape \(3, 4\): wanted \(3, 5\)"),
        (lambda t, r: r["settings"].update(latent_dim=2), "wanted .* by its settings"),
        (lambda t, r: r["settings"].update(latent_dim="two"), "unusable record .*`latent_dim` is 'two'"),
        (lambda t, r: r["settings"].update(momentum=1), "unusable record .*unknown settings momentum"),
        (lambda t, r: r.pop("settings"), "unusable record"),
        (lambda t, r: r.update(sample_shape=[2, 0]), "unusable record .*wanted widths of at least 1"),
        (lambda t, r: r.update(sample_shape=5), "unusable record"),
    ],
)
def test_a_model_whose_tensors_do_not_fit_its_record_is_refused(tmp_path, model, change, message):
    model.save(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message) as raised:
        load(tmp_path)
    assert FILE in str(raised.value)
