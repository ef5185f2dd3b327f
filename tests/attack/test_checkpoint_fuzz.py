"""Checkpoints that were changed on purpose: evaluated, resumed, or refused with a sentence.

The changes know the structure of the file: values of the configuration, of states and of pickles
are exchanged for odd ones, the pickle's opcodes and names are exchanged, bytes are flipped, cut and
repeated, parts of the archive are renamed, doubled and dropped.
"""

import copy
import io
import pathlib
import pickle
import pickletools
import random
import shutil
import time
import traceback
import zipfile

import dill
import pytest
import torch
from omegaconf import OmegaConf
from runs import build, latest

from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.errors import DiffusionPolicyError
from diffusion_policy.common.safe_pickle import safe_loads
from diffusion_policy.workspace.evaluation import open_workspace

LIMIT_S = 30.0  # of one attack, on a loaded machine
ODD = [
    *(None, True, False, 0, -1, 1, 2**31, -(2**63), 2**64, 10**400, 0.5, -1e308, float("nan")),
    *(float("inf"), "", "x", "0", "../../x", "/dev/null", "\x00", "ä" * 1000, "${x}", "os.system"),
    *(b"", b"\x80", [], [1], [[]], {}, {"x": 1}, {1: 2}, (), (1, 2)),
    *("???", "{epoch.__class__}", "{x}" * 50, "%s%n", "'", "a" * 100_000),
]


def places(tree, path=()):
    """The path of every value in nested dicts, lists and tuples."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, dict | list | tuple):
            yield from places(value, (*path, key))
        else:
            yield (*path, key)


def change(tree, path, new):
    """``tree`` with another value at a path; tuples become lists on the way."""
    if not path:
        return new(tree)
    tree = dict(tree) if isinstance(tree, dict) else list(tree)
    tree[path[0]] = change(tree[path[0]], path[1:], new)
    return tree


class Mutations:
    """Draws one change of a whole checkpoint after the other; see the module."""

    def __init__(self, path: pathlib.Path, rng: random.Random):
        self.rng = rng
        self.bytes = path.read_bytes()
        self.payload = torch.load(path, pickle_module=dill, weights_only=False)
        self.cfg = OmegaConf.to_container(self.payload["cfg"], resolve=True)
        self.kinds = (
            *(self.configuration, self.configuration, self.state, self.pickled, self.pickled),
            *(self.inner_pickle, self.opcode, self.damage, self.archive),
        )

    def write(self, path: pathlib.Path) -> str:
        """Writes a changed file; returns what was changed."""
        kind = self.rng.choice(self.kinds)
        what = kind(path)
        return f"{kind.__name__}: {what}"

    def odd(self, old):
        """An odd value; or two of the same, or none, of what was there."""
        kind = self.rng.randrange(8)
        if kind == 0 and isinstance(old, torch.Tensor):
            return self.odd_tensor(old)
        if kind == 1 and isinstance(old, dict) and old:
            return {k: v for k, v in old.items() if k != self.rng.choice(list(old))}
        if kind == 1 and isinstance(old, list | tuple):
            return [*old, *old]
        if kind == 2 and isinstance(old, int | float):
            return old * self.rng.choice([-1, 0, 2, 10**9])
        if kind == 3:
            return [copy.copy(old)]
        return copy.copy(self.rng.choice(ODD))

    def odd_tensor(self, old):
        return self.rng.choice(
            [
                old.flatten()[:1],
                old.to(torch.complex64),
                old.to(torch.int8),
                torch.full_like(old, float("nan")) if old.is_floating_point() else -old,
                old.unsqueeze(0),
                torch.zeros(0),
            ]
        )

    def save(self, path, payload):
        torch.save(payload, path, pickle_module=dill)

    def configuration(self, path):
        where = self.rng.choice([*places(self.cfg)])
        tree = change(self.cfg, where, self.odd)
        self.save(
            path, self.payload | {"cfg": OmegaConf.create(tree, flags={"allow_objects": True})}
        )
        return ".".join(map(str, where))

    def state(self, path):
        states = self.payload["state_dicts"]
        where = self.rng.choice([*places(states)])
        self.save(path, self.payload | {"state_dicts": change(states, where, self.odd)})
        return "/".join(map(str, where))

    def pickled(self, path):
        values = {k: dill.loads(v) for k, v in self.payload["pickles"].items()}
        where = self.rng.choice([p for p in places(values) if p])
        values = change(values, where, self.odd)
        self.save(path, self.payload | {"pickles": {k: dill.dumps(v) for k, v in values.items()}})
        return "/".join(map(str, where))

    def inner_pickle(self, path):
        pickles = dict(self.payload["pickles"])
        name = self.rng.choice(list(pickles))
        pickles[name] = self.change_bytes(bytearray(pickles[name]))
        self.save(path, self.payload | {"pickles": pickles})
        return name

    def opcode(self, path):
        """Another opcode, argument or name somewhere in the pickle of the archive."""
        with zipfile.ZipFile(io.BytesIO(self.bytes)) as old:
            parts = {name: old.read(name) for name in old.namelist()}
        name = next(n for n in parts if n.endswith("data.pkl"))
        data = bytearray(parts[name])
        starts = [p for _, _, p in pickletools.genops(parts[name])]
        i = self.rng.randrange(len(starts) - 1)
        a, b = starts[i], starts[i + 1]
        replacement = self.rng.choice(
            [
                b"",
                bytes(data[a:b]) * 2,
                pickle.dumps(self.rng.choice(ODD), 4)[2:-1],
                b"cposix\nsystem\n",
                b"cbuiltins\nstr\n",
                b"ccollections\nOrderedDict\n",
                b"comegaconf.dictconfig\nDictConfig\n",
                b"ctorch._utils\n_rebuild_tensor_v2\n",
                self.rng.choice(list(pickletools.code2op)).encode("latin1"),
            ]
        )
        parts[name] = bytes(data[:a]) + replacement + bytes(data[b:])
        self.zip(path, parts.items())
        return f"at {a}: {replacement[:30]!r}"

    def damage(self, path):
        path.write_bytes(self.change_bytes(bytearray(self.bytes)))
        return "bytes"

    def change_bytes(self, data: bytearray) -> bytes:
        start = self.rng.randrange(len(data))
        length = self.rng.choice([1, 1, 4, 50])
        kind = self.rng.randrange(4)
        if kind == 0:
            data[start] ^= 1 << self.rng.randrange(8)
        elif kind == 1:
            del data[start:]
        elif kind == 2:
            data[start : start + length] = self.rng.randbytes(length)
        else:
            data[start:start] = data[start : start + length]
        return bytes(data)

    def archive(self, path):
        with zipfile.ZipFile(io.BytesIO(self.bytes)) as old:
            parts = [(name, old.read(name)) for name in old.namelist()]
        i, kind = self.rng.randrange(len(parts)), self.rng.randrange(5)
        name, content = parts[i]
        if kind == 0:
            del parts[i]
        elif kind == 1:
            parts.append((name, content))
        elif kind == 2:
            parts[i] = (self.rng.choice([name.upper(), "x/" + name, name + "x" * 600]), content)
        elif kind == 3:
            parts[i] = (name, self.change_bytes(bytearray(content)) if content else b"x")
        else:
            parts.append((name.replace(name.split("/")[-1], "constants.pkl"), b"\x80\x02)."))
        self.zip(path, parts)
        return f"{name}, {kind}"

    @staticmethod
    def zip(path, parts):
        with zipfile.ZipFile(path, "w") as new:
            for name, content in parts:
                new.writestr(name, content)


@pytest.fixture
def trained(tiny_config, tmp_path):
    """A finished run, with all kinds of state in its checkpoint."""
    cfg = tiny_config("training.num_epochs=1", "training.gradient_accumulate_every=2")
    run_dir = tmp_path / "run"
    build(cfg, run_dir).run()
    return cfg, run_dir


def attacked(use, path, what) -> str | None:
    """What went wrong, if it was neither fine nor a sentence."""
    begin = time.monotonic()
    try:
        use(path)
    except DiffusionPolicyError as error:
        if len(str(error)) > 20_000:
            return f"{what}: a sentence of {len(str(error))} characters"
    except Exception:
        return f"{what}: {traceback.format_exc()[-1500:]}"
    seconds = time.monotonic() - begin
    return f"{what}: it took {seconds:.0f} s" if seconds > LIMIT_S else None


def attack_with(attack, target, mutations, path, use):
    """Uses one changed file at ``path`` after the other."""
    failures, n = [], 0
    for _ in attack.rounds():
        what = mutations.write(path)
        failures += filter(None, [attacked(use, path, what)])
        n += 1
    attack.record(target, n, failures)


@pytest.mark.filterwarnings("ignore")
def test_changed_checkpoints_are_read_or_refused(attack, trained, tmp_path, monkeypatch):
    def read(path):
        for data in load_payload(path)["pickles"].values():
            safe_loads(data)

    monkeypatch.chdir(tmp_path)
    mutations = Mutations(latest(trained[1]), attack.rng)
    path = tmp_path / "changed.ckpt"
    attack_with(attack, "a changed checkpoint is read", mutations, path, read)


@pytest.mark.filterwarnings("ignore")
def test_changed_checkpoints_are_evaluated_or_refused(attack, trained, tmp_path, monkeypatch):
    def evaluate(path):
        with open_workspace(path, tmp_path / "out", allow=["toys"]) as workspace:
            workspace.get_eval_policy()

    monkeypatch.chdir(tmp_path)
    mutations = Mutations(latest(trained[1]), attack.rng)
    path = tmp_path / "changed.ckpt"
    attack_with(attack, "a changed checkpoint is opened by eval.py", mutations, path, evaluate)


@pytest.mark.filterwarnings("ignore")
def test_changed_checkpoints_are_resumed_or_refused(attack, trained, tmp_path, monkeypatch):
    cfg, run_dir = trained
    cfg.training.num_epochs = 2
    copied = tmp_path / "copy"

    def resume(path):
        try:
            build(cfg, copied).run()
        finally:  # all but the file that is changed next
            shutil.rmtree(copied)
            shutil.copytree(run_dir, copied)

    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_dir, copied)
    mutations = Mutations(latest(run_dir), attack.rng)
    target = "a training is resumed from a changed checkpoint"
    attack_with(attack, target, mutations, latest(copied), resume)
