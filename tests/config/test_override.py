"""Overrides are read back by Hydra, and printed commands by shells, as what went into them."""

import os
import shlex
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.override import (
    check_current_folder,
    check_overrides,
    is_override_of,
    override,
    with_overrides,
)

# Every character that means something to Hydra, OmegaConf or a shell, and any other.
SPECIAL = " '\"=%$\\{}[](),:#~!&|;<>*?`^@+-./\n\t\r"
TEXT = st.text(
    st.one_of(
        st.sampled_from(SPECIAL),
        st.sampled_from("ab01_üß数据🤖"),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    )
).filter(lambda text: "${" not in text and text != "???")
ODD = [
    *("", " ", " a ", "a b", "it's", 'say "x"', "a=b", "100%", "$HOME", "$x{", "{a}", "[b]", "a,b"),
    *("~/x", "~", "#1", "a: b", "\n", "a\nb", "\\", "a\\", "a\\'", "'\\'", '\\"', "\\\\'", "(x)"),
    *("true", "null", "1", "1.5", "1e5", "inf", "nan", "0x10", "prüfung", "数据", "choice(a,b)"),
    *("range(3)", "glob(*)", "a|b", "`id`", "$(id)", "!x", "-x", "--", "=", "'", '"', "\t"),
]


def read(argument):
    parsed = OverridesParser.create().parse_override(argument)
    assert not parsed.is_sweep_override()
    return parsed.key_or_group, parsed.value()


def in_configuration(value):
    """What a configuration with this value has, before and after everything is resolved."""
    cfg = OmegaConf.create({"key": "nothing"})
    OmegaConf.update(cfg, "key", value)
    assert cfg.key == value
    OmegaConf.resolve(cfg)
    return cfg.key


def examples(test):
    for text in ODD:
        test = example(text)(test)
    return test


@examples
@settings(deadline=None, max_examples=300)
@given(TEXT)
def test_hydra_reads_every_text_as_it_is(text):
    key, value = read(override("hydra.run.dir", text))
    assert (key, value, type(value)) == ("hydra.run.dir", text, str)
    assert in_configuration(value) == text


@pytest.mark.parametrize("shell", ["sh", "bash"])
@settings(deadline=None, max_examples=5)
@given(texts=st.lists(TEXT, min_size=200, max_size=300))
def test_a_shell_and_then_hydra_read_every_text_as_it_is(shell, texts):
    texts = [*ODD, *texts]
    show = "import sys; sys.stdout.buffer.write('\\0'.join(sys.argv[1:]).encode())"
    command = shlex.join([sys.executable, "-c", show, *(override("key", text) for text in texts)])
    done = subprocess.run([shell, "-c", command], capture_output=True, timeout=60, check=True)
    words = done.stdout.decode().split("\0")
    assert [read(word)[1] for word in words] == texts


@pytest.mark.parametrize("value", [42, -1, True, False])
def test_numbers_stay_numbers(value):
    assert read(override("++training.seed", value)) == ("training.seed", value)
    assert type(read(override("training.seed", value))[1]) is type(value)


def test_what_needs_no_quotes_has_none():
    for text in ("/data/outputs/2026.01.01/12.00.00_a-b+c_d@e", "a1", "train_0", "../x"):
        assert override("key", text) == f"key={text}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/data/${x}", "begins a reference"),
        ("${", "begins a reference"),
        ("\\${x}", "begins a reference"),
        ("???", "a value is missing"),
        (os.fsdecode(b"/data/\xff"), "bytes that are no text"),
    ],
)
def test_what_no_configuration_can_hold_is_refused_in_one_sentence(text, reason):
    with pytest.raises(ConfigError, match=f"^hydra.run.dir cannot be .*{reason}.*choose") as error:
        override("++hydra.run.dir", text)
    assert "\n" not in str(error.value)


# ---- command lines -------------------------------------------------------------------------------


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_an_override_of_a_key_is_recognized(plus):
    assert is_override_of("hydra.run.dir", f"{plus}hydra.run.dir='a=b'")
    assert is_override_of("hydra.run.dir", "~hydra.run.dir")
    for other in ("hydra.run.dirs=x", "hydra_run.dir=x", "--config-dir=hydra.run.dir=x", "x"):
        assert not is_override_of("hydra.run.dir", f"{plus}{other}")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--config-name=x"], ["--config-name=x", "new=1"]),
        (["a=1", "~b", "--config-name=x"], ["new=1", "a=1", "~b", "--config-name=x"]),
        (["~b", "-cn", "x"], ["new=1", "~b", "-cn", "x"]),
        # the value of an option is no override, whatever it looks like
        (["--config-dir", "/a=b", "c=1"], ["--config-dir", "/a=b", "new=1", "c=1"]),
        (["-cd", "~/x", "-cn=y"], ["-cd", "~/x", "-cn=y", "new=1"]),
        (["--info", "all"], ["--info", "all", "new=1"]),
    ],
)
def test_further_overrides_stand_beside_the_others(given, expected):
    from hydra._internal.utils import get_args_parser

    assert with_overrides(given, ["new=1"]) == expected
    assert "new=1" in get_args_parser().parse_args(expected).overrides


def test_an_override_that_hydra_cannot_read_comes_with_how_to_write_it():
    with pytest.raises(
        ConfigError, match=r"cannot read the override key=/ü = x; .* write (.*)"
    ) as e:
        check_overrides(["--config-name=ü", "a=1", "key=/ü = x"])
    [word] = shlex.split(str(e.value).split("write ")[1])
    assert read(word) == ("key", "/ü = x")


def test_an_escaped_reference_is_refused():
    with pytest.raises(ConfigError, match="name cannot be"):
        check_overrides([r"name='\${x}'"])


def test_ordinary_command_lines_pass():
    check_overrides(
        ["--config-name=ü", "--config-dir=/a b", "a=1,2", "+b.c=[1,{d: e}]", "x='ü'", "~y", "~z=1"]
        + ["hydra/launcher=joblib", "task@other=x", "name=${task_name}", "k=", "seed=range(1,3)"]
    )


@pytest.mark.parametrize(
    ("name", "sentence"), [("a${x}", "beginning of a reference"), (None, "does not exist any more")]
)
def test_a_current_folder_that_hydra_cannot_write_down(tmp_path, monkeypatch, name, sentence):
    folder = tmp_path / (name or "gone")
    folder.mkdir()
    monkeypatch.chdir(folder)
    if name is None:
        folder.rmdir()
    with pytest.raises(ConfigError, match=sentence):
        check_current_folder()
