import numpy as np
import pytest
import torch
import zarr
from gpu import needs_gpu, no_waiting
from reference_weights import wave
from torch import nn

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.model.common.normalizer import (
    LinearNormalizer,
    SingleFieldLinearNormalizer,
)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def plain(stats):
    """ParameterDicts as dictionaries of tensors."""
    if isinstance(stats, torch.Tensor):
        return stats.detach()
    return {name: plain(value) for name, value in stats.items()}


def test_every_case_of_the_original_is_reproduced(golden):
    cases = torch.load(golden / "a_normalizer.pt", weights_only=True)["cases"]
    assert len(cases) == 39
    classes = {c.__name__: c for c in (LinearNormalizer, SingleFieldLinearNormalizer)}
    for case in cases:
        options = dict(case["fit_kwargs"])
        if options.get("dtype") == "float64":
            options["dtype"] = torch.float64
        normalizer = classes[case["cls"]]()
        normalizer.fit(case["data"], **options)
        assert_close(normalizer.normalize(case["x"]), case["normalized"])
        assert_close(normalizer.unnormalize(case["normalized"]), case["unnormalized"])
        assert list(normalizer.state_dict()) == case["state_dict_keys"]
        assert_close(dict(normalizer.state_dict()), case["state_dict"])
        assert_close(plain(normalizer.get_input_stats()), case["input_stats"])
        assert_close(plain(normalizer.get_output_stats()), case["output_stats"])
        assert not any(p.requires_grad for p in normalizer.parameters())


def test_identity_manual_and_nesting_match_the_original(golden):
    extra = torch.load(golden / "a_normalizer.pt", weights_only=True)["extra"]
    identity = SingleFieldLinearNormalizer.create_identity()
    assert_close(dict(identity.state_dict()), extra["identity_state"])

    state = extra["setitem_state"]
    stats = {
        name: state[f"params_dict.b.input_stats.{name}"] for name in ("min", "max", "mean", "std")
    }
    normalizer = LinearNormalizer()
    normalizer["a"] = identity
    normalizer["b"] = SingleFieldLinearNormalizer.create_manual(
        state["params_dict.b.scale"], state["params_dict.b.offset"], stats
    )
    assert_close(dict(normalizer.state_dict()), state)
    policy = nn.Module()
    policy.normalizer = normalizer
    assert list(policy.state_dict()) == extra["nested_module_state_keys"]
    data = extra["setitem_norm"]
    assert_close(normalizer.normalize(normalizer.unnormalize(data)), data)


def test_fitted_numbers_of_the_specification():
    x = wave(50, 3, phase=0.1)
    x[:, 2] = 0.5
    fits = [
        ({}, [1.0276257, 1.0162328, 1], [0.0275577, -0.0015994, -0.5]),
        ({"mode": "gaussian"}, [1.4146924, 1.4094740, 1], [-0.0050128, -0.0139843, -0.5]),
        ({"fit_offset": False}, [1.0000662, 1.0146101, 2], [0, 0, 0]),
    ]
    for options, scale, offset in fits:
        params = SingleFieldLinearNormalizer.create_fit(x, **options).params_dict
        torch.testing.assert_close(params["scale"], torch.tensor(scale), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            params["offset"], torch.tensor(offset).float(), rtol=1e-5, atol=1e-5
        )


def test_limits_fill_the_output_range_and_invert():
    data = wave(40, 3) * torch.tensor([1.0, 100.0, 0.01]) + 5
    normalizer = LinearNormalizer()
    normalizer.fit(data, output_min=-0.5, output_max=2.0)
    y = normalizer.normalize(data)
    assert_close(y.amin(0), torch.full((3,), -0.5))
    assert_close(y.amax(0), torch.full((3,), 2.0))
    torch.testing.assert_close(normalizer.unnormalize(y), data, rtol=1e-5, atol=1e-4)


def test_a_constant_dimension_goes_to_the_middle_without_being_stretched():
    data = torch.stack((wave(20), torch.full((20,), 7.0)), dim=1)
    normalizer = SingleFieldLinearNormalizer.create_fit(data, output_min=0.0, output_max=1.0)
    assert_close(normalizer.normalize(data)[:, 1], torch.full((20,), 0.5))
    shifted = normalizer.normalize(data + 0.25)
    assert_close(shifted[:, 1], torch.full((20,), 0.75))


def test_numpy_torch_and_zarr_give_the_same_fit_and_result():
    data = wave(30, 4)
    on_disk = zarr.create_array({}, shape=(30, 4), chunks=(7, 4), dtype="float32", zarr_format=2)
    on_disk[:] = data.numpy()
    fits = []
    for kind in (data, data.numpy(), on_disk):
        normalizer = LinearNormalizer()
        normalizer.fit({"obs": kind})
        fits.append(normalizer.state_dict())
        assert torch.equal(
            normalizer.normalize({"obs": kind})["obs"], normalizer.normalize({"obs": data})["obs"]
        )
    assert_close(dict(fits[1]), dict(fits[0]))
    assert_close(dict(fits[2]), dict(fits[0]))


def test_calling_is_normalizing_and_the_result_is_new():
    normalizer = SingleFieldLinearNormalizer.create_identity()
    x = wave(2, 3)
    y = normalizer(x)
    assert torch.equal(x, y)
    y.zero_()
    assert x.abs().sum() > 0


def test_integers_and_doubles_are_cast_to_the_dtype_of_the_fit():
    normalizer = SingleFieldLinearNormalizer.create_fit(np.arange(10.0)[:, None])
    assert normalizer.normalize(np.array([[3]], dtype=np.uint8)).dtype == torch.float32
    assert normalizer.normalize(torch.ones(1, 1, dtype=torch.float64)).dtype == torch.float32


def test_an_image_normalizer_of_length_one_accepts_any_shape():
    normalizer = SingleFieldLinearNormalizer.create_manual(
        np.float32([2]), np.float32([-1]), {"min": np.float32([0]), "max": np.float32([1])}
    )
    image = torch.rand(2, 3, 4, 4)
    assert_close(normalizer.normalize(image), 2 * image - 1)


def test_fields_share_their_numbers_with_the_single_field_views():
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": wave(9, 2), "action": wave(9, 3)})
    single = normalizer["action"]
    assert single.params_dict is normalizer.params_dict["action"]
    assert_close(single.normalize(wave(4, 3)), normalizer({"action": wave(4, 3)})["action"])


def test_fitting_again_replaces_the_field():
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": wave(9, 2)})
    normalizer.fit({"obs": 3 * wave(9, 4)})
    assert normalizer["obs"].params_dict["scale"].shape == (4,)


def test_nothing_of_a_normalizer_is_trained():
    stats = {name: np.ones(2, np.float32) for name in ("min", "max", "mean", "std")}
    manual = SingleFieldLinearNormalizer.create_manual(
        np.ones(2, np.float32), np.zeros(2, np.float32), stats
    )
    fitted = LinearNormalizer()
    fitted.fit({"a": wave(5, 2)})
    fitted["b"] = manual
    assert not any(p.requires_grad for p in fitted.parameters())
    x = wave(3, 2).requires_grad_()
    fitted.normalize({"b": x})["b"].sum().backward()
    assert x.grad is not None, "gradients flow through, to the input"


def test_stats_of_the_input_and_of_the_output():
    data = wave(30, 2) + 3
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": data})
    assert_close(normalizer.get_input_stats()["obs"]["max"].detach(), data.amax(0))
    assert_close(normalizer.get_output_stats()["obs"]["min"], torch.full((2,), -1.0))
    bare = LinearNormalizer()
    bare.fit(data)
    assert_close(bare.get_input_stats()["mean"].detach(), data.mean(0))
    assert_close(bare.get_output_stats()["max"], torch.ones(2))


def test_a_state_dict_restores_the_normalizer():
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": wave(30, 2), "action": 5 * wave(30, 3)})
    twin = LinearNormalizer()
    twin.load_state_dict(normalizer.state_dict())
    x = {"obs": wave(3, 2), "action": wave(3, 3)}
    for key, value in normalizer.normalize(x).items():
        assert torch.equal(twin.normalize(x)[key], value)


# ---- one clear sentence for every bad input ----


def test_an_unknown_field_is_named_and_is_a_key_error():
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": wave(9, 2)})
    for call in (normalizer.normalize, normalizer.unnormalize):
        with pytest.raises(
            KeyError, match=r"^The normalizer has the fields \['obs'\] but not 'goal'"
        ):
            call({"goal": wave(1, 2)})
    with pytest.raises(KeyError, match="'goal'"):
        normalizer["goal"]
    with pytest.raises(ConfigError, match="no fields"):
        LinearNormalizer().normalize({"obs": wave(1, 2)})


def test_an_unfitted_normalizer_says_so():
    for call in (
        lambda: LinearNormalizer().normalize(wave(1, 2)),
        lambda: LinearNormalizer().get_input_stats(),
        lambda: LinearNormalizer().get_output_stats(),
        lambda: SingleFieldLinearNormalizer().normalize(wave(1, 2)),
    ):
        with pytest.raises(RuntimeError, match="fit"):
            call()


def test_a_wrong_last_dimension_names_field_found_and_expected():
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": wave(9, 20)})
    with pytest.raises(ConfigError, match=r"^obs has 24 values .* field 'obs' was fitted on 20"):
        normalizer.normalize({"obs": torch.zeros(2, 16, 24)})
    # 5 x 24 is a multiple of 20: a view would have mixed up the dimensions silently
    with pytest.raises(ConfigError, match="24"):
        normalizer.unnormalize({"obs": torch.zeros(5, 24)})
    with pytest.raises(ConfigError, match="The input has 3 values"):
        normalizer["obs"].normalize(torch.zeros(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_data_that_is_not_finite_is_refused_with_its_row(bad):
    data = wave(30, 2)
    data[17, 1] = bad
    with pytest.raises(DataError, match=r"'obs' .* 1 of 30 rows, the first is row 17"):
        LinearNormalizer().fit({"obs": data})


def test_empty_data_is_refused():
    with pytest.raises(DataError, match=r"'obs' has shape \(0, 2\)"):
        LinearNormalizer().fit({"obs": np.zeros((0, 2))})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "minmax"}, "minmax"),
        ({"output_min": 1.0, "output_max": 1.0}, "empty"),
        ({"output_min": 0.0, "fit_offset": False}, "zero"),
    ],
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        LinearNormalizer().fit(wave(9, 2), **options)


def test_manual_numbers_must_agree_in_shape_and_dtype():
    one, two = np.ones(1, np.float32), np.ones(2, np.float32)
    with pytest.raises(ConfigError, match=r"offset is \(1,\)"):
        SingleFieldLinearNormalizer.create_manual(two, one, {})
    with pytest.raises(ConfigError, match=r"mean is \(2,\) torch.float64"):
        SingleFieldLinearNormalizer.create_manual(two, two, {"mean": two.astype(np.float64)})


@pytest.mark.parametrize("name", ["robot.pos", "keys", "items"])
def test_field_names_that_cannot_be_saved_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        LinearNormalizer().fit({name: wave(9, 2)})


@needs_gpu
def test_on_a_gpu_nothing_waits_for_the_device():
    normalizer = LinearNormalizer()
    normalizer.fit({"obs": wave(9, 2)})
    normalizer.to("cuda")
    x = wave(9, 2).cuda()
    with no_waiting():
        y = normalizer.normalize({"obs": x})["obs"]
        normalizer.unnormalize({"obs": y})
    assert_close(normalizer.unnormalize({"obs": y})["obs"], x)
