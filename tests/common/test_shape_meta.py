"""shape_meta: order, defaults, and one sentence for what cannot be."""

import pytest
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.shape_meta import parse_shape_meta

META = {
    "obs": {
        "agent_pos": {"shape": [2]},
        "image": {"shape": [3, 96, 96], "type": "rgb"},
        "force": {"shape": [6], "type": "low_dim"},
    },
    "action": {"shape": [2]},
}


@pytest.mark.parametrize("wrap", [dict, OmegaConf.create])
def test_the_order_of_the_configuration_is_kept(wrap):
    meta = parse_shape_meta(wrap(META))
    assert meta.rgb == {"image": (3, 96, 96)}
    assert meta.low_dim == {"agent_pos": (2,), "force": (6,)}
    assert list(meta.obs.items()) == [
        ("agent_pos", (2,)),
        ("image", (3, 96, 96)),
        ("force", (6,)),
    ]
    assert meta.action == (2,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs": {"x": {"shape": [2], "type": "audio"}}}, r"obs\.x\.type is 'audio'; expected one"),
        ({"obs": {"x": {"shape": [9, 9], "type": "rgb"}}}, r"an image needs \[channels, height"),
        ({"obs": {"x": {"shape": [0]}}}, r"obs\.x\.shape is \[0\]; expected a list of whole"),
        ({"obs": {"x": {}}}, r"obs\.x\.shape is None"),
        ({"action": {"shape": "2"}}, r"shape_meta\.action\.shape is 2"),
    ],
)
def test_impossible_entries_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_shape_meta(META | change)


def test_a_missing_part_is_named():
    with pytest.raises(ConfigError, match=r"has no 'action' \(it has \['obs'\]\)"):
        parse_shape_meta({"obs": {}})
