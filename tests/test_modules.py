import copy
import functools
import time

import pytest
import torch
from torch import nn

from pullback._modules import evaluation_mode, fits_decoder, holds_half, modules_behind, widened


class Method(nn.Module):
    """A model whose decoder is a method."""

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = nn.Linear(2, 3), nn.Dropout()

    def decode(self, z):
        return self.dropout(self.layer(z))


@pytest.mark.parametrize(
    ("layer", "effect"),
    [
        (nn.BatchNorm2d(3), "depend on the whole batch"),
        (nn.SyncBatchNorm(3), "depend on the whole batch"),
        (nn.Dropout(0.1), "be random"),
        (nn.AlphaDropout(0.1), "be random"),
        (nn.RReLU(), "be random"),
        (nn.MultiheadAttention(4, 2, dropout=0.1), "be random"),
        (nn.GRU(3, 3, 2, dropout=0.1), "be random"),
        (nn.InstanceNorm1d(3, track_running_stats=True), "change its running statistics"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), "change its running statistics"),
    ],
)
def test_layers_that_act_otherwise_in_training_are_refused_in_training_only(layer, effect):
    decoder = nn.Sequential(nn.Linear(2, 3), nn.Sequential(layer))
    with pytest.raises(
        ValueError, match=rf"training mode and holds \w+ \('1.0.*'\): .* {effect}. Call decoder.eval\(\)"
    ):
        evaluation_mode(decoder)
    assert evaluation_mode(decoder.eval()) is False
    layer.train()
    with pytest.raises(ValueError, match="training mode"):
        evaluation_mode(decoder)


def test_other_layers_may_be_in_training_mode():
    layers = nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm1d(3), nn.MultiheadAttention(4, 2), nn.GRU(3, 3)
    assert evaluation_mode(nn.ModuleList(layers)) is True
    assert evaluation_mode(lambda z: z) is False


def test_the_module_behind_a_method_is_looked_at():
    with pytest.raises(ValueError, match="holds Dropout"):
        evaluation_mode(Method().decode)
    assert evaluation_mode(Method().eval().decode) is False


def test_points_that_the_decoder_has_another_dtype_or_device_for_are_refused():
    z = torch.zeros(1, 2)
    for decoder in (nn.Linear(2, 3).double(), Method().double().decode):
        with pytest.raises(
            ValueError, match=r"dtype float32 but the decoder has float64: use z.to\(torch.float64\) or"
        ):
            fits_decoder(z, decoder)
    with pytest.raises(ValueError, match=r"points are on cpu but the decoder is on meta: use z.to\('meta'\) or"):
        fits_decoder(z, nn.Linear(2, 3, device="meta"))


def test_decoders_without_floating_point_weights_fit_all_points():
    counter = nn.Module()
    counter.register_buffer("n", torch.zeros((), dtype=torch.long))
    for decoder in (nn.Linear(2, 3), nn.Tanh(), counter, torch.sin, functools.partial(torch.add, torch.ones(2))):
        fits_decoder(torch.zeros(1, 2), decoder)


def test_modules_are_found_once_by_the_name_that_they_have_in_the_outermost():
    inner = nn.Linear(2, 2)
    outer = nn.Sequential(inner, nn.Tanh())
    assert dict(modules_behind(outer)) == dict(outer.named_modules())
    both = functools.partial(lambda a, b, z: b(a(z)), outer, inner)
    assert {id(module) for _, module in modules_behind(both)} == {id(outer), id(inner), id(outer[1])}
    assert len(list(modules_behind(both))) == 3
    assert len(list(modules_behind(None, outer, lambda z: inner(z)))) == 3
    for empty in (None, torch.sin, 3, "text", nn.functional.gelu, lambda z: torch.sin(z), torch, nn.Linear):
        assert list(modules_behind(empty)) == []


def test_a_function_that_calls_itself_or_is_not_finished_is_looked_at_once():
    inner = nn.Linear(2, 2)

    def loop(z, n=3):
        return loop(inner(z), n - 1) if n else late(z)

    assert [module for _, module in modules_behind(loop)] == [inner]
    late = torch.sin
    assert torch.isfinite(loop(torch.zeros(1, 2))).all()


def test_long_lists_of_data_are_not_searched():
    data, inner = [0.0] * 10_000_000, nn.Linear(2, 2)
    begin = time.perf_counter()
    assert [module for _, module in modules_behind(lambda z: inner(z) + data[0])] == [inner]
    assert time.perf_counter() - begin < 0.1


def test_tensors_in_half_precision_are_wide_while_a_function_runs_and_not_after():
    layer = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).bfloat16().eval()
    z, seen = torch.ones(1, 2, dtype=torch.float64), []
    before = copy.deepcopy(layer.state_dict())

    def call(z):
        seen.append({tensor.dtype for tensor in layer.state_dict().values()})
        return layer(z)

    assert holds_half(None, layer)
    assert widened(call, z, layer).dtype == torch.float64
    assert seen == [{torch.float64, torch.int64}]  # batch norm counts batches
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype
    assert not holds_half(nn.Linear(2, 3), torch.sin)
    with pytest.raises(RuntimeError, match="of the user"):
        widened(raising, z, layer)
    assert holds_half(layer)


def raising(z):
    raise RuntimeError("of the user")


def test_a_weight_in_half_precision_is_no_reason_for_an_error_of_another_kind():
    layer = nn.Linear(2, 3).bfloat16()
    fits_decoder(torch.zeros(1, 2), layer, "shapes cannot be multiplied")
    with pytest.raises(ValueError, match=r"bfloat16 and holds on to it: use decoder.to\(torch.float32\)"):
        fits_decoder(torch.zeros(1, 2), layer, "must have the same dtype")
