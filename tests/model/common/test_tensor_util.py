import numpy as np
import pytest
import torch

from diffusion_policy.model.common import tensor_util as tu

X = torch.arange(24.0).view(2, 3, 4)
NESTED = {"a": X, "b": [X.numpy(), (None, X[0])]}


def test_join_dimensions_merges_an_inclusive_range():
    assert torch.equal(tu.join_dimensions(X, 0, 1), X.view(6, 4))
    assert torch.equal(tu.join_dimensions(X, 1, 2), X.view(2, 12))
    np.testing.assert_array_equal(tu.join_dimensions(X.numpy(), 0, 2), np.arange(24))


def test_reshape_dimensions_replaces_an_inclusive_range():
    assert tu.reshape_dimensions(X, 1, 1, (3, 1)).shape == (2, 3, 1, 4)
    assert torch.equal(tu.reshape_dimensions(X.view(6, 4), 0, 0, (2, 3)), X)
    with pytest.raises(ValueError, match="axes 1 to 3"):
        tu.reshape_dimensions(X, 1, 3, (2,))


def test_unsqueeze_expand_at_repeats_without_memory():
    y = tu.unsqueeze_expand_at(X, size=5, dim=1)
    assert y.shape == (2, 5, 3, 4)
    assert y.stride(1) == 0
    assert torch.equal(y[:, 3], X)
    with pytest.raises(ValueError, match="size 1"):
        tu.expand_at(X, 2, 0)


def test_flatten_keeps_the_leading_axes():
    assert tu.flatten(X).shape == (2, 12)
    assert tu.flatten(X, begin_axis=2).shape == (2, 3, 4)
    assert tu.flatten(X, begin_axis=0).shape == (24,)


def test_every_helper_walks_nested_containers_and_keeps_them():
    y = tu.unsqueeze(NESTED, 0)
    assert tu.get_shape(y) == {"a": (1, 2, 3, 4), "b": [(1, 2, 3, 4), (None, (1, 3, 4))]}
    assert isinstance(y["b"][1], tuple)
    with pytest.raises(NotImplementedError, match="str"):
        tu.flatten({"a": "text"})


def test_conversions():
    as_tensors = tu.to_tensor(NESTED)
    assert isinstance(as_tensors["b"][0], torch.Tensor)
    as_arrays = tu.to_numpy(as_tensors)
    assert isinstance(as_arrays["a"], np.ndarray)
    assert tu.to_list(X[0, 0]) == [0.0, 1.0, 2.0, 3.0]
    assert tu.to_list(np.ones(2)) == [1.0, 1.0]
    assert tu.to_uint8({"x": X})["x"].dtype == torch.uint8
    assert tu.to_float(np.zeros(1)).dtype == np.float32
    double = tu.to_torch({"x": np.zeros(3)}, "cpu")["x"]
    assert double.dtype == torch.float32
    copy = tu.clone(NESTED)
    copy["a"].zero_()
    assert X.sum() > 0
    assert not tu.detach(X.clone().requires_grad_()).requires_grad
    assert tu.contiguous(X.transpose(0, 1)).is_contiguous()
    assert tu.to_device(X, "meta").device.type == "meta"


def test_batch_time_and_one_hot():
    assert tu.to_batch(X).shape == (1, 2, 3, 4)
    assert tu.to_sequence(X).shape == (2, 1, 3, 4)
    assert torch.equal(tu.index_at_time(X, 1), X[:, 1])
    assert tu.to_one_hot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert tu.repeat_by_expand_at(torch.tensor([1, 2]), 2, 0).tolist() == [1, 1, 2, 2]


def test_reductions_by_name():
    assert torch.equal(tu.named_reduce(X, "sum", 1), X.sum(1))
    assert torch.equal(tu.named_reduce(X, "mean", 0), X.mean(0))
    assert torch.equal(tu.named_reduce(X, "max", 2), X.amax(2))
    assert tu.named_reduce(X, "flatten", 1).shape == (2, 12)
    with pytest.raises(ValueError, match="median"):
        tu.named_reduce(X, "median", 0)


def test_gathering_one_step_per_sequence():
    steps = torch.tensor([2, 0])
    assert torch.equal(tu.gather_sequence(X, steps), torch.stack((X[0, 2], X[1, 0])))
    along = tu.gather_along_dim_with_dim(
        X, target_dim=0, source_dim=2, indices=torch.tensor([0, 1, 0, 1])
    )
    assert torch.equal(along, torch.stack([X[i % 2, :, i] for i in range(4)], dim=-1))
    with pytest.raises(ValueError, match="indices"):
        tu.gather_sequence(X, torch.tensor([1]))


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_padding_sequences(kind):
    x = kind([[1, 2], [3, 4]])
    assert tu.pad_sequence(x, (1, 2)).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4], [3, 4]]
    batched = tu.pad_sequence(x, (1, 1), batched=True, pad_same=False, pad_values=0)
    assert batched.tolist() == [[0, 1, 2, 0], [0, 3, 4, 0]]
    assert x.tolist() == [[1, 2], [3, 4]], "the input is left alone"
    with pytest.raises(ValueError, match="pad_values"):
        tu.pad_sequence(x, (1, 1), pad_same=False)


def test_time_distributed_applies_an_operation_to_every_step():
    layer = torch.nn.Linear(4, 5)
    expected = torch.stack([layer(X[:, t]) for t in range(3)], dim=1).relu()
    torch.testing.assert_close(tu.time_distributed(X, layer, torch.relu), expected)
    by_name = tu.time_distributed({"input": X}, layer.forward, inputs_as_kwargs=True)
    torch.testing.assert_close(by_name.relu(), expected)
    by_position = tu.time_distributed([X], layer, inputs_as_args=True)
    torch.testing.assert_close(by_position.relu(), expected)


def test_sizes_are_asserted_on_every_leaf():
    tu.assert_size_at_dim({"a": X, "b": X.numpy()}, 3, 1, "three steps")
    with pytest.raises(AssertionError, match="two steps"):
        tu.assert_size_at_dim({"a": X}, 2, 1, "two steps")


def test_flattening_containers():
    assert tu.list_of_flat_dict_to_dict_of_list([{"a": 1}, {"a": 2}]) == {"a": [1, 2]}
    flat = dict(tu.flatten_nested_dict_list({"a": {"b": 1, "c": [2, 3]}, "d": 4}))
    assert flat == {"a_b": 1, "a_c_0": 2, "a_c_1": 3, "d": 4}
