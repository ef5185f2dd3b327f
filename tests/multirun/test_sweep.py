"""What a sweep is on disk: its folder, its commands, and what can be wrong with them."""

import json
import os

import pytest
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.override import override
from diffusion_policy.config.targets import TargetPolicy, targets_allowed_by
from diffusion_policy.multirun.monitor_process import monitor_command
from diffusion_policy.multirun.run_command import REPOSITORY
from diffusion_policy.multirun.sweep import (
    compose,
    configuration_dir,
    create_sweep,
    extend_sweep,
    load_sweep,
    parse_seeds,
)
from diffusion_policy.workspace.command_line import CONFIG_DIR


@pytest.fixture
def make(tmp_path):
    """make(*overrides, name="demo_pusht", seeds=(42, 43)): a new sweep."""

    def make(*overrides, name="demo_pusht", config_dir=None, seeds=(42, 43), **kwargs):
        overrides = [f"multi_run.run_dir={tmp_path}/sweep", *overrides]
        cfg = compose(name, config_dir, overrides)
        return create_sweep(cfg, name, config_dir, overrides, seeds, **kwargs)

    return make


def test_the_commands_are_those_of_the_specification(make, tmp_path):
    sweep = make("training.num_epochs=5")
    assert sweep.folder == tmp_path / "sweep"
    assert len(sweep.group) == 8
    assert sweep.group.isalnum()
    [_, task] = sweep.tasks
    assert (task.name, task.seed) == ("train_1", 43)
    assert task.command == [
        "python",
        "train.py",
        "--config-name=demo_pusht",
        "--config-dir=diffusion_policy/config",
        f"multi_run.run_dir={tmp_path}/sweep",
        "training.num_epochs=5",
        "training.seed=43",
        "task.env_runner.test_start_seed=4400000",
        f"logging.name={sweep.name_base}_train_1",
        f"logging.id={sweep.group}_train_1",
        f"logging.group={sweep.group}",
        f"hydra.run.dir={tmp_path}/sweep/train_1",
    ]
    assert sweep.name_base.endswith("_demo_pusht_pusht_lowdim")


def test_the_folder_has_the_resolved_configuration_and_the_runs(make):
    sweep = make()
    text = (sweep.folder / "config.yaml").read_text()
    assert "${" not in text
    cfg = OmegaConf.load(sweep.folder / "config.yaml")
    assert cfg.task.env_runner.n_obs_steps == cfg.n_obs_steps
    assert "hydra" not in cfg
    assert text.startswith("task_name: pusht_lowdim\n"), "not in block style"
    assert all(sweep.run_dir(name).is_dir() for name in ("train_0", "train_1"))
    assert load_sweep(sweep.folder) == sweep
    assert sweep.config == cfg


def test_a_real_task_has_no_environment_seed(make):
    sweep = make(name="train_robomimic_real_image_workspace")
    assert not any("test_start_seed" in word for word in sweep.tasks[0].command)
    assert "training.seed=42" in sweep.tasks[0].command


def test_a_published_configuration_without_a_place_for_sweeps(tmp_path):
    published = {"name": "x", "task": {"name": "y"}, "training": {"num_epochs": 1}}
    OmegaConf.save(OmegaConf.create(published), tmp_path / "published.yaml")
    cfg = compose("published.yaml", str(tmp_path), [])
    data = tmp_path / "data"
    sweep = create_sweep(cfg, "published.yaml", str(tmp_path), [], [1], data_src=data)
    assert sweep.folder.name.endswith("_x_y")
    assert sweep.folder.parent.parent == data / "outputs"
    assert f"--config-dir={tmp_path}" in sweep.tasks[0].command
    assert f"++logging.group={sweep.group}" in sweep.tasks[0].command
    assert "++training.seed=1" in sweep.tasks[0].command


def test_what_is_shipped_is_found_from_a_folder_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults:\n  - demo_pusht\n  - _self_\nname: mine\n")
    assert compose("mine", str(tmp_path), []).name == "mine"
    assert compose("demo_pusht", str(tmp_path), []).name == "demo_pusht"


def test_options_that_configurations_lack_can_be_given(make):
    sweep = make("training.mixed_precision=bf16")
    assert sweep.config.training.mixed_precision == "bf16"
    assert "training.mixed_precision=bf16" in sweep.tasks[0].command


def test_unusual_characters_reach_hydra_as_they_are(make, tmp_path):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    folder = tmp_path / "it's, a=(sweep)"
    quoted = str(folder).replace("'", "\\'")
    sweep = make(f"multi_run.run_dir='{quoted}'")
    assert sweep.folder == folder
    override = OverridesParser.create().parse_override(sweep.tasks[0].command[-1])
    assert override.value() == str(folder / "train_0")


def test_data_of_the_runs_may_lie_elsewhere(make, tmp_path):
    sweep = make("multi_run.run_dir=data/outputs/s", data_src=tmp_path / "disk")
    assert sweep.folder == tmp_path / "disk" / "outputs" / "s"


def test_an_existing_folder_is_not_touched(make, tmp_path):
    make()
    with pytest.raises(ConfigError, match=r"exists; continue that sweep with --resume"):
        make()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot create"):
        make(f"multi_run.run_dir={tmp_path}/file/sweep")


def test_further_overrides_are_appended_for_all_and_for_good(make):
    sweep = make("training.num_epochs=5")
    extended = extend_sweep(sweep, ["training.num_epochs=9"])
    assert extended.group == sweep.group
    assert [c.index("training.num_epochs=9") for c in (t.command for t in extended.tasks)] == [6, 6]
    assert load_sweep(sweep.folder) == extended
    assert extended.config.training.num_epochs == 9
    assert extended.config.multi_run == sweep.config.multi_run


def test_a_sweep_that_was_moved_continues_where_it_is(make, tmp_path):
    sweep = make("training.num_epochs=5")
    sweep.folder.rename(tmp_path / "moved")
    moved = load_sweep(tmp_path / "moved")
    assert moved.group == sweep.group
    assert moved.tasks[1].command[:-1] == sweep.tasks[1].command[:-1]
    assert moved.tasks[1].command[-1] == f"hydra.run.dir={tmp_path}/moved/train_1"
    assert load_sweep(tmp_path / "moved") == moved
    assert not sweep.folder.exists()


def test_the_monitor_is_in_the_group_of_the_runs(make):
    sweep = make()
    start = ["python", "multirun_metrics.py", "--input", str(sweep.folder)]
    assert monitor_command(sweep, ["a"], use_wandb=False) == [*start, "--key", "a"]
    wandb = ["--use_wandb", "--project", "diffusion_policy_metrics", "--group", sweep.group]
    keys = ["--key", "a", "--key", "b"]
    assert monitor_command(sweep, ["a", "b"], use_wandb=True) == [*start, *wandb, *keys]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["horizn=3"], "Could not override 'horizn'"),
        (["task=nonsense"], "Available options in 'task'"),
        (["horizon=${eval:'1/0'}"], "cannot be computed"),
    ],
)
def test_a_mistake_in_an_override_is_one_sentence(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        compose("demo_pusht", None, overrides)
    assert "\n" not in str(caught.value)


def test_an_unknown_configuration_is_one_sentence():
    with pytest.raises(ConfigError, match="Cannot find primary config 'nonsense'"):
        compose("nonsense", None, [])


def test_configurations_are_found_from_any_copy_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert configuration_dir(None) is None
    assert configuration_dir(".") == "."
    assert configuration_dir(str(CONFIG_DIR)) == "diffusion_policy/config"
    assert configuration_dir(str(tmp_path)) == str(tmp_path)
    with pytest.raises(ConfigError, match="no such folder"):
        configuration_dir("nowhere")


def test_seeds():
    assert parse_seeds("42,43, 44") == [42, 43, 44]
    for text in ("", "1,1", "a", "-1", "1;2"):
        with pytest.raises(ConfigError, match="--seeds"):
            parse_seeds(text)


@pytest.mark.parametrize(
    "content",
    [None, "[]", "{", "{}", json.dumps({"tasks": [{"name": "train_0"}]}), "[" * 100_000, "\ufffe"],
)
def test_a_folder_that_is_no_sweep_cannot_be_resumed(tmp_path, content):
    if content is not None:
        (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ConfigError, match=r"sweep\.json"):
        load_sweep(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../train_0"},
        {"name": "train_0/../../x"},
        {"name": 0},
        {"command": "python train.py"},
        {"command": []},
        {"command": ["python", 1]},
        {"seed": "1"},
        {"other": 1},
    ],
)
def test_the_record_of_an_odd_run_is_one_sentence(make, change):
    folder = make().folder
    record = json.loads((folder / "sweep.json").read_text())
    record["tasks"][0] |= change
    (folder / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"sweep\.json is not the record of a sweep"):
        load_sweep(folder)


def test_a_record_is_no_script(make, tmp_path):
    sweep = make("training.num_epochs=5")
    record = json.loads((sweep.folder / "sweep.json").read_text())
    record["tasks"][0]["command"] = ["touch", str(tmp_path / "MARK")]
    (sweep.folder / "sweep.json").write_text(json.dumps(record))
    assert load_sweep(sweep.folder) == sweep
    with targets_allowed_by(TargetPolicy(everything=True)):
        assert load_sweep(sweep.folder).tasks[0].command[0] == "touch"


@pytest.mark.parametrize(
    "override",
    ["--trust-config", "-m", "hydra.callbacks.x._target_=os.getcwd", "+hydra/launcher=x"],
)
def test_overrides_of_a_record_are_about_the_training(make, override):
    sweep = make()
    record = json.loads((sweep.folder / "sweep.json").read_text())
    record["overrides"] = [override]
    (sweep.folder / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="which can run code; repeat with --trust-config"):
        load_sweep(sweep.folder)


def test_what_the_user_allows_is_passed_on_to_the_runs(make, monkeypatch):
    monkeypatch.setenv("DIFFUSION_POLICY_TARGETS", '{"names": ["a.b"], "everything": true}')
    command = make().tasks[0].command
    assert command[4:6] == ["--trust-config", "--allow=a.b"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is not readable YAML"),
        ("- 1", "holds a list"),
        ("training: 1", "has a training that is no section of keys"),
        ("logging: [1]", "has a logging that is no section of keys"),
        ("a: &a [1]\n" + "b: &b [*a, *a, *a]\nc: [" + "*b, " * 10_000 + "]", "20,000 values"),
    ],
)
def test_a_damaged_configuration_of_a_sweep_is_one_sentence(make, text, sentence):
    sweep = make()
    (sweep.folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        _ = sweep.config


@pytest.mark.parametrize(
    "name", ["prüfung", "a=b", "ü = 100% $HOME {a} [b] \"c\" 'd' 数据", "a\nb", "back\\slash\\"]
)
def test_a_folder_may_have_any_name(make, tmp_path, name):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweep = make(override("multi_run.run_dir", str(tmp_path / name)))
    assert sweep.folder == tmp_path / name
    for task in sweep.tasks:
        read = OverridesParser.create().parse_overrides(task.command[4:])
        assert read[-1].value() == str(tmp_path / name / task.name)


def test_a_folder_that_hydra_cannot_name_is_refused_before_it_is_made(make, tmp_path):
    cfg = compose("demo_pusht", None, [])
    cfg.multi_run.run_dir = os.path.join(tmp_path, os.fsdecode(b"\xff"))
    with pytest.raises(ConfigError, match=r"hydra.run.dir cannot be .* bytes that are no text"):
        create_sweep(cfg, "demo_pusht", None, [], [1])
    assert os.listdir(tmp_path) == []


def test_a_group_of_digits_is_a_text(make, monkeypatch):
    monkeypatch.setattr("secrets.choice", lambda letters: "7")
    sweep = make()
    assert sweep.group == "77777777"
    assert "logging.group='77777777'" in sweep.tasks[0].command


def test_an_override_that_hydra_cannot_read_is_told_how_to_write():
    with pytest.raises(ConfigError, match=r"cannot read the override name=ü; .* write "):
        compose("demo_pusht", None, ["name=ü"])
