import dataclasses
import json

import pytest

from pullback.models import TrainingSettings


def test_settings_survive_a_round_trip_through_json():
    settings = TrainingSettings(hidden=[10, 5], zeta=1e-9, output="linear")
    assert TrainingSettings.from_record(json.loads(json.dumps(settings.to_record()))) == settings


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainingSettings().epochs = 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("latent_dim", "epochs", "batch_size") for value in (0, -1, 1.5, True, "3")),
        *((name, 0) for name in ("rbf_centers", "rbf_epochs")),
        *((name, value) for name in ("learning_rate", "rbf_bandwidth") for value in (0.0, -1.0, float("nan"), "x")),
        *((name, value) for name in ("weight_decay", "warmup") for value in (-0.1, float("inf"), None)),
        ("warmup", 1.5),
        ("zeta", 0.0),
        ("zeta", 1e-3),
        ("output", "relu"),
    ],
)
def test_a_setting_out_of_range_is_named_with_what_came_and_what_is_wanted(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is .*wanted"):
        TrainingSettings(**{name: value})


@pytest.mark.parametrize(("hidden", "message"), [((), "`hidden` is empty"), ((4, 0), r"`hidden\[1\]` is 0")])
def test_hidden_layers_need_a_width(hidden, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(hidden=hidden)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="unknown settings momentum: wanted some of batch_size"):
        TrainingSettings.from_record({"momentum": 0.9})
