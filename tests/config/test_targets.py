"""What a configuration may name: a list, the user's own code, and what the user says."""

import pathlib
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.allowed_targets import ALLOWED_TARGETS
from diffusion_policy.config.compose import CONFIG_DIR
from diffusion_policy.config.instantiate import instantiate
from diffusion_policy.config.targets import (
    FOREIGN,
    OURS,
    TargetPolicy,
    allow_targets,
    check_targets,
    current_policy,
    locate,
    targets_allowed_by,
)

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
MALICE = [
    *("os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec"),
    *("shutil.copyfile", "shutil.rmtree", "runpy.run_path", "importlib.import_module"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch.from_file", "numpy.load"),
    *("numpy.fromfile", "dill.loads", "pickle.loads", "cloudpickle.loads", "hydra.main"),
    *("hydra.utils.get_object", "zarr.open", "wandb.init", "torch.nn.modules.module.torch.load"),
    "diffusion_policy.multirun.run_command.start_command",
    "diffusion_policy.multirun.run_command.worker_fn",
    "diffusion_policy.common.checkpoint_util.atomic_write",
    "diffusion_policy.common.replay_buffer.ReplayBuffer.create_from_path",
    "diffusion_policy.workspace.base_workspace.BaseWorkspace.create_from_snapshot",
    "diffusion_policy.workspace.base_workspace.dill.loads",
    "diffusion_policy.policy.diffusion_unet_lowdim_policy.torch.load",
    "diffusion_policy.model.vision.model_getter.hub.load",
    "diffusion_policy.model.vision.model_getter.get_r3m",
    "torch.nn.Identity.__init__.__globals__",
    "torch.optim.AdamW.__class__",
    *("tests.sweeps.start", "ray_exec.main", "train.main", "benchmarks.bench_sampling.main"),
    *("", ".", "os", "nowhere.at.all", "torch.nn.identity", " torch.nn.Identity"),
]


@pytest.fixture(autouse=True)
def mark(tmp_path, monkeypatch):
    """A folder with a module of the user's own, on the path."""
    (tmp_path / "my_own_code.py").write_text("class Thing:\n    def __init__(self, a=1): pass\n")
    (tmp_path / "mark.py").write_text(f"open({str(tmp_path / 'MARK')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("policy", [FOREIGN, TargetPolicy()], ids=["foreign", "own"])
@pytest.mark.parametrize("target", MALICE)
def test_what_is_not_listed_is_not_found_and_not_built(policy, target):
    with targets_allowed_by(policy):
        with pytest.raises(ConfigError):
            locate(target)
        with pytest.raises(ConfigError, match="which is not"):
            instantiate({"_target_": target})
        with pytest.raises(ConfigError, match=r"at a\[0\]\.b"):
            instantiate({"_target_": "torch.nn.Identity", "a": [{"b": {"_target_": target}}]})


@pytest.mark.parametrize("target", [None, 3, ["os.system"], {"_target_": "os.system"}, True])
def test_a_name_is_a_string(target):
    with pytest.raises(ConfigError, match="which is not"):
        check_targets({"_target_": target})


def test_nothing_is_imported_to_find_out(tmp_path):
    with targets_allowed_by(FOREIGN), pytest.raises(ConfigError):
        locate("mark.Thing")
    with pytest.raises(ConfigError):
        check_targets({"_target_": "antigravity.x"})
    check_targets({"_target_": "mark.Thing"})
    assert not (tmp_path / "MARK").exists()


def test_one_s_own_code_is_allowed_in_one_s_own_configurations_only():
    assert type(instantiate({"_target_": "my_own_code.Thing"})).__name__ == "Thing"
    with targets_allowed_by(FOREIGN), pytest.raises(ConfigError, match="--allow=my_own_code"):
        instantiate({"_target_": "my_own_code.Thing"})


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        (("my_own_code",), True),
        (("my_own_code.Thing",), True),
        (("my_own",), False),
        (("my_own_code.Thing.x",), False),
        (("",), False),
        ((), False),
    ],
)
def test_names_that_the_user_vouches_for(names, allowed):
    policy = TargetPolicy(names, own_code=False)
    assert policy.allows("my_own_code.Thing") is allowed
    assert not policy.allows("os.system")


def test_trust_lifts_everything():
    with targets_allowed_by(TargetPolicy(everything=True)):
        assert locate("os.getcwd")() == instantiate({"_target_": "os.getcwd"})


def test_the_standard_library_is_never_offered_by_name():
    with pytest.raises(ConfigError) as error:
        locate("os.system")
    assert "--allow" not in str(error.value)
    assert "--trust-config" in str(error.value)


def test_a_process_has_the_policy_of_the_one_that_started_it(monkeypatch):
    monkeypatch.delenv("DIFFUSION_POLICY_TARGETS", raising=False)
    assert current_policy() == TargetPolicy()
    monkeypatch.setenv("DIFFUSION_POLICY_TARGETS", "")
    monkeypatch.delenv("DIFFUSION_POLICY_TARGETS")
    allow_targets(["a.b", "c"], everything=True)
    policy = current_policy()
    assert policy == TargetPolicy(("a.b", "c"), everything=True)
    assert policy.words == ["--trust-config", "--allow=a.b", "--allow=c"]
    monkeypatch.delenv("DIFFUSION_POLICY_TARGETS")


# ---- the list ------------------------------------------------------------------------------------


def names_in(tree):
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == "_target_":
                yield value
            yield from names_in(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from names_in(value)


def module_file(name):
    return REPOSITORY / (name.rpartition(".")[0].replace(".", "/") + ".py")


def test_every_listed_name_is_there_if_its_module_is():
    for name in sorted(ALLOWED_TARGETS):
        is_to_come = name.startswith("diffusion_policy.") and not module_file(name).exists()
        if not is_to_come and "robomimic" not in name:
            assert callable(locate(name)), name


def test_every_class_that_shipped_configurations_name_is_listed_if_it_exists():
    named = set()
    for path in CONFIG_DIR.rglob("*.yaml"):
        named |= set(names_in(OmegaConf.to_container(OmegaConf.load(path))))
    assert len(named) > 30
    assert named <= ALLOWED_TARGETS


def test_what_lies_beside_the_package_is_ours():
    beside = {path.stem for path in REPOSITORY.glob("*.py")}
    beside |= {path.parent.name for path in REPOSITORY.glob("*/*.py")}
    assert beside <= OURS


def test_nobody_else_turns_names_into_objects():
    pattern = re.compile(r"hydra\.utils|get_class|get_method|get_object|pydoc\.locate")
    for path in (REPOSITORY / "diffusion_policy").rglob("*.py"):
        if path.name not in ("targets.py", "instantiate.py"):
            assert not pattern.search(path.read_text()), path


# ---- what is checked is what is built ------------------------------------------------------------


def test_a_value_that_would_be_resolved_again_is_refused():
    cfg = OmegaConf.create({"a": "\\${oc.decode:'{_target_: os.getcwd}'}"})
    with pytest.raises(ConfigError, match="resolved a second time"):
        instantiate({"_target_": "torch.nn.Identity", "x": cfg.a})
    with pytest.raises(ConfigError, match="resolved a second time"):
        instantiate(OmegaConf.create({"_target_": "torch.nn.Identity", "x": cfg}))


def test_objects_do_not_hide_in_a_tree():
    with pytest.raises(ConfigError, match="a value of type"):
        instantiate({"_target_": "torch.nn.Identity", "x": object()})


def test_interpolations_into_the_rest_of_the_configuration_still_work():
    cfg = OmegaConf.create(
        {"name": "torch.nn.Linear", "n": 3, "net": {"_target_": "${name}", "in_features": "${n}"}}
    )
    assert instantiate(cfg.net, out_features=2).weight.shape == (2, 3)


# ---- the command line ----------------------------------------------------------------------------


def train(tmp_path, text, *arguments):
    (tmp_path / "config.yaml").write_text(text)
    command = [sys.executable, "train.py", f"--config-dir={tmp_path}", "--config-name=config.yaml"]
    command += [*arguments, f"hydra.run.dir={tmp_path / 'run'}"]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=REPOSITORY
    )


@pytest.mark.parametrize(
    "text",
    [
        "_target_: os.system\ncommand: touch {mark}",
        "x: os\n_target_: ${{x}}.system\ncommand: touch {mark}",
        "hydra: {{callbacks: {{x: {{_target_: os.system, command: touch {mark}}}}}}}",
        "hydra: {{launcher: {{_target_: os.getcwd}}}}",
        "hydra: {{hydra_logging: {{handlers: {{x: {{(): os.system, command: touch {mark}}}}}}}}}",
        "hydra: {{job: {{env_set: {{LD_PRELOAD: {mark}}}}}}}",
    ],
)
def test_a_configuration_file_does_not_run_code(tmp_path, text):
    done = train(tmp_path, text.format(mark=tmp_path / "MARK"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "--trust-config" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "MARK").exists()


def test_a_file_that_is_included_is_looked_at_too(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "evil.yaml").write_text(
        "# @package _global_\n"
        f"hydra: {{callbacks: {{x: {{_target_: os.mkdir, path: {tmp_path}/M}}}}}}"
    )
    base = "defaults: [base/train, _self_, {task: pusht_lowdim}]"
    done = train(tmp_path, base, "task=evil")
    assert "sets hydra.callbacks" in done.stderr
    done = train(tmp_path, base, "--multirun", "task=pusht_lowdim,evil")
    assert "sets hydra.callbacks" in done.stderr
    assert not (tmp_path / "M").exists()


def test_the_user_s_word_is_heard(tmp_path):
    done = train(tmp_path, "_target_: os.system", "--trust-config")
    assert "expected a workspace" in done.stderr
    done = train(tmp_path, "_target_: os.system", "--allow=os.system")
    assert "expected a workspace" in done.stderr
    for wrong in ("--allow", "--allow=", "--allow=os/system"):  # the first takes the next word
        done = train(tmp_path, "_target_: os.system", wrong)
        assert "give the name of a class, a module or a package" in done.stderr
