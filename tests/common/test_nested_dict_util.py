"""Functions over the leaves of nested dicts."""

import pytest

from diffusion_policy.common.nested_dict_util import (
    nested_dict_check,
    nested_dict_map,
    nested_dict_reduce,
)

TREE = {"a": 1, "b": {"c": 2, "d": {"e": 3}}}


def test_map_applies_the_function_to_every_leaf_and_keeps_the_shape():
    assert nested_dict_map(lambda x: x * 10, TREE) == {"a": 10, "b": {"c": 20, "d": {"e": 30}}}
    assert TREE["a"] == 1
    assert nested_dict_map(lambda x: x * 10, 7) == 70


def test_reduce_goes_from_the_inside_out_in_order():
    assert nested_dict_reduce(lambda x, y: f"({x}{y})", {"a": "1", "b": TREE["b"]}) == "(1(23))"
    assert nested_dict_reduce(max, 5) == 5


@pytest.mark.parametrize(("limit", "expected"), [(4, True), (3, False)])
def test_check_holds_only_if_it_holds_for_every_leaf(limit, expected):
    assert nested_dict_check(lambda x: x < limit, TREE) is expected


def test_check_of_a_dict_without_leaves_is_true():
    assert nested_dict_check(lambda x: False, {"a": {}})
