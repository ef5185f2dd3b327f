"""YAML of other people is read in a bounded time; what cannot be read is a sentence."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.yaml_files import load_yaml, read_yaml


def bomb(levels=9):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]")
    return "\n".join(lines) + "\n"


def test_a_configuration_is_read_and_its_interpolations_stay(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 1\nb: ${a}\nc: &c [1, 2]\nd: *c\ne: {<<: {x: 1}, y: 1e-4}\n")
    cfg = load_yaml(path)
    assert cfg.b == 1
    assert OmegaConf.to_container(cfg) == {
        "a": 1,
        "b": "${a}",
        "c": [1, 2],
        "d": [1, 2],
        "e": {"x": 1, "y": 1e-4},
    }


@pytest.mark.parametrize("read", [load_yaml, read_yaml])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb(), "more than 20,000 values"),
        ("a: &a {b: *a}", "contains itself"),
        ("a: " + "[" * 1000 + "]" * 1000, "deeper than 60 levels"),
        ("a: 1\n" + "# " + "x" * 2_000_000, "larger than 1 MB"),
        ("- 1\n" * 200_000, "more than 20,000 values"),
        ("a: 1" + ":59" * 100_000, "more than 400 digits"),
        ("a: 0x" + "f" * 100_000, "more than 400 digits"),
        ("a: 1" + "0" * 500 + ".0", "more than 400 digits"),
        ("a: !!int ''", "not readable YAML"),
        ("a: !!bool x", "not readable YAML"),
        ("a: !!timestamp x", "not readable YAML"),
        ("a: [1, 2", "not readable YAML"),
        ("a: 1\na: 2", "duplicate key a"),
        ("a: !!python/object/apply:os.system [touch MARK]", "could not determine a constructor"),
        ("\x00", "not readable YAML"),
    ],
)
def test_bombs_and_damage_are_a_sentence(tmp_path, text, said, read):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        read(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "- 1", "word"])
def test_a_configuration_is_a_mapping(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="a configuration is a mapping"):
        load_yaml(path)


def test_missing_and_undecodable_files_are_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="not readable YAML"):
        load_yaml(tmp_path / "latin.yaml")


def test_omegaconf_itself_is_bounded_and_with_it_hydra(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(bomb())
    with pytest.raises(ConfigError, match="20,000 values"):
        OmegaConf.load(path)
    train = [sys.executable, "train.py", f"--config-dir={tmp_path}", "--config-name=config"]
    done = subprocess.run(train, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "20,000 values" in done.stderr
