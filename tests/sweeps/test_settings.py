"""From a point of the space of a sweep to the settings of a student."""

import pytest

from rllib_kd.sweeps.trial import settings_of


def test_a_temperature_is_for_the_losses_that_read_it():
    sample = {"loss": "kl", "temperature": 0.5}
    assert settings_of(sample, {}) == sample
    assert settings_of({**sample, "loss": "mse"}, {}) == {"loss": "mse"}
    assert settings_of({"temperature": 0.5}, {"loss": "nll"}) == {}
    assert settings_of({"temperature": 0.5}, {}) == {"temperature": 0.5}


def test_only_draws_of_the_default_space_are_rounded():
    sample = {"lr": 0.012345, "gamma": 0.9996, "target_network_update_freq": 123456.0}
    assert settings_of(sample, {}, rounded={"lr"}) == {**sample, "lr": 0.0123}
    assert settings_of(sample, {}) == sample


def test_widths_join_the_model_config_that_is_given():
    fixed = {"model_config": {"fcnet_activation": "silu"}}
    expected = {"model_config": {"fcnet_activation": "silu", "fcnet_hiddens": [8]}}
    assert settings_of({"fcnet_hiddens": [8]}, fixed) == expected
    assert settings_of({"fcnet_hiddens": [8]}, {})["model_config"]["fcnet_activation"] == "tanh"


@pytest.mark.parametrize("sample", [{"fcnet_hiddens": [8]}, {"compression": 0.01}])
def test_integers_have_no_table_of_tanh(sample):
    assert settings_of(sample, {}, "int8_bytes")["model_config"]["fcnet_activation"] == "relu"
    fixed = {"model_config": {"fcnet_activation": "silu"}}
    assert settings_of(sample, fixed, "int8_bytes")["model_config"]["fcnet_activation"] == "silu"
    assert "model_config" not in settings_of({"compression": 0.01}, {})
