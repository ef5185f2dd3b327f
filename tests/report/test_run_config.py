"""Configurations are compared by what they mean, not by how they were written."""

import pytest
from omegaconf import OmegaConf

from diffusion_policy.common.errors import DataError
from diffusion_policy.report.run_config import differing_keys, format_value, read_config

COMPOSED = """\
name: unet
horizon: 16
n_obs_steps: 2
dim: ${eval:'${n_obs_steps}*3'}
run: ${now:%H}
task: {shape: [1, 2], keys: {a: 1, b: null}, env_runner: {test_start_seed: 100, n_test: 50}}
copy: ${task.keys}
training: {seed: 42, device: cuda:0, num_epochs: 3, resume: true}
logging: {name: "${now:%H}_x", mode: online}
multi_run: {run_dir: data/1}
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "config.yaml").write_text(text)
        return read_config(tmp_path / "config.yaml", tmp_path)

    return read


def test_settings_are_flat_resolved_and_lists_are_one(read):
    config = read(COMPOSED)
    assert config.text == COMPOSED
    assert config.get("dim") == 6
    assert config.get("task.shape") == [1, 2]
    assert config.get("copy.a") == 1
    assert config.values["copy.b"] is None
    assert config.get("run") == "${now:%H}"
    assert config.get("nothing") is None


def test_only_what_makes_a_difference_differs(read):
    other = COMPOSED.replace("seed: 42", "seed: 43").replace("cuda:0", "cpu")
    other = other.replace("_seed: 100", "_seed: 200").replace("data/1", "data/2")
    other = other.replace("_x", "_y").replace("online", "offline").replace("true", "false")
    assert differing_keys([read(COMPOSED), read(other)]) == []


def test_what_follows_from_a_difference_is_not_another_one(read):
    other = COMPOSED.replace("n_obs_steps: 2", "n_obs_steps: 3").replace("a: 1", "a: 5")
    assert differing_keys([read(COMPOSED), read(other)]) == ["n_obs_steps", "task.keys.a"]
    own = COMPOSED.replace("dim: ${eval:'${n_obs_steps}*3'}", "dim: 7")
    assert differing_keys([read(COMPOSED), read(own)]) == ["dim"]


def test_a_resolved_configuration_is_the_composed_one(read):
    tree = OmegaConf.create(COMPOSED.replace("${now:%H}", "12"))
    OmegaConf.resolve(tree)
    resolved = read(OmegaConf.to_yaml(tree).replace("run: 12", "run: ${now:%H}"))
    assert differing_keys([read(COMPOSED), resolved]) == []


def test_missing_settings_and_types_are_differences(read):
    a, b = read("x: 1\ny: true\nz: null\n"), read("x: 1.0\ny: 1\nw: a\n")
    assert differing_keys([a, b]) == ["x", "y", "z", "w"]
    assert [format_value(a, key) for key in "xyzw"] == ["1", "true", "null", "–"]


def test_the_environment_is_not_told(read, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    config = read("key: ${oc.env:SECRET}\nother: ${oc.env:SECRET,none}\nlist: ['${oc.env:SECRET}']")
    assert "hunter2" not in str(config.values)


def test_a_formula_that_cannot_be_computed_stays(read):
    assert read("a: ${nowhere}\nb: ${unknown:3}\n").get("a") == "${nowhere}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is not readable YAML"),
        ("- 1\n- 2\n", "holds a list"),
        ("a: 1\na: 2\n", "duplicate key a"),
        ("a: &a [1]\n" + "b: &b [*a, *a, *a, *a]\nc: [" + "*b, " * 10_000 + "]", "20,000 values"),
    ],
)
def test_what_is_no_configuration_is_one_sentence(read, text, sentence):
    with pytest.raises(DataError, match=rf"config\.yaml .*{sentence}"):
        read(text)


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_configuration_that_is_being_written_is_none(read, text):
    assert read(text).text is None


@pytest.mark.parametrize(
    "formula", ["${", "${a", "${b c}", "${eval:", "${.}", "${..}", "${a.}", "$${"]
)
def test_what_is_no_reference_stays_as_it_is_written(read, formula):
    config = read(f"a: '{formula}'\nb: 1\n")
    assert config.values == {"a": formula, "b": 1}
