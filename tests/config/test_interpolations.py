"""Interpolations that would grow without end are found before they are resolved."""

import pytest
from omegaconf import OmegaConf

import diffusion_policy.config  # noqa: F401  registers the resolvers
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.resolvers import plain, resolve


def chain(text, first, n=60):
    tree = {"x0": first}
    for i in range(1, n):
        tree[f"x{i}"] = text.replace("PREVIOUS", f"x{i - 1}")
    return tree


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "tree",
    [
        chain("${PREVIOUS}${PREVIOUS}", "abc"),
        {"a": {f"b{i}": [f"${{..b{i - 1}}}"] * 2 if i else "abc" for i in range(60)}},
        {"a": {f"b{i}": f"${{.b{i - 1}}}${{a.b{i - 1}}}" if i else "abc" for i in range(60)}},
        {f"b{i}": {"c": f"${{b{i - 1}}}", "d": f"${{b{i - 1}}}"} if i else {} for i in range(60)},
        chain("${eval:\"'${PREVIOUS}' + '${PREVIOUS}'\"}", "abc"),
    ],
    ids=["text", "lists", "relative", "nodes", "eval"],
)
def test_what_grows_without_end_is_refused(tree):
    with pytest.raises(ConfigError, match="larger than 2,000,000 values and characters"):
        resolve(OmegaConf.create(tree))


def test_what_is_repeated_a_few_times_is_not():
    cfg = OmegaConf.create(chain("${PREVIOUS}${PREVIOUS}", "ab", n=8))
    resolve(cfg)
    assert cfg.x7 == "ab" * 2**7
    tree = {"shape": {"obs": [1, 2]}, "a": {"b": "${shape}", "c": "${..shape.obs[1]}"}}
    assert plain(OmegaConf.create(tree).a) == {"b": {"obs": [1, 2]}, "c": 2}


def test_circles_are_reported_by_their_key():
    with pytest.raises(ConfigError, match="config key a"):
        resolve(OmegaConf.create({"a": "${b}", "b": "${a}"}))
