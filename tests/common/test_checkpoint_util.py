"""Checkpoint files survive kills and full disks; the list of the best ones survives a resume."""

import errno
import json
import logging
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from diffusion_policy.common import checkpoint_util
from diffusion_policy.common.checkpoint_file import load_payload
from diffusion_policy.common.checkpoint_util import (
    TopKCheckpointManager,
    atomic_write,
    link_or_copy,
    newest_other_checkpoint,
)
from diffusion_policy.common.errors import CheckpointError, ConfigError


def write(path, content=b"new"):
    atomic_write(path, lambda file: file.write(content))


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


# ---- atomic files -------------------------------------------------------------------------------


def test_a_file_is_created_with_its_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "latest.ckpt"
    write(path, b"one")
    write(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert names(path.parent) == ["latest.ckpt"]


def test_the_old_file_stays_until_the_new_one_is_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "latest.ckpt"
    path.write_bytes(b"old")
    events = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def spy(*args, _name=name, _original=original):
            events.append((_name, path.read_bytes()))
            return _original(*args)

        monkeypatch.setattr(os, name, spy)

    def slowly(file):
        file.write(b"new")
        assert path.read_bytes() == b"old"

    atomic_write(path, slowly)
    # The content, then the move, then the folder that knows the move.
    assert events == [("fsync", b"old"), ("replace", b"old"), ("fsync", b"new")]


@pytest.mark.parametrize("error", [ValueError("cannot pickle"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "latest.ckpt"
    write(path, b"old")

    def fail(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        atomic_write(path, fail)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["latest.ckpt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_one_sentence_with_sizes_and_what_is_intact(tmp_path, code, wrapped):
    path = tmp_path / "latest.ckpt"
    write(path, b"old")

    def fail(file):
        file.write(b"x" * 3_000_000)
        try:
            raise OSError(code, os.strerror(code))
        except OSError:
            if not wrapped:
                raise
            raise RuntimeError("unexpected pos 768 vs 662")  # noqa: B904  as torch.save does

    with pytest.raises(CheckpointError) as error:
        atomic_write(path, fail)
    message = str(error.value)
    assert message.startswith(f"cannot write {path}: {os.strerror(code)} (it needs more than")
    assert "3.0 MB written so far" in message
    free = shutil.disk_usage(tmp_path).free / 1e6
    stated = float(message.split("so far, ")[1].split(" MB are free")[0])
    assert stated == pytest.approx(free, rel=0.2)
    assert message.endswith(f"the previous {path} is intact; free some space and resume")
    assert "\n" not in message
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["latest.ckpt"]


def test_a_full_disk_at_the_first_write_of_a_name_points_to_the_newest_other(tmp_path):
    def fail(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="nothing was there before"):
        atomic_write(tmp_path / "epoch=2.ckpt", fail)
    write(tmp_path / "latest.ckpt")
    with pytest.raises(CheckpointError, match=r"the previous .*latest\.ckpt is intact"):
        atomic_write(tmp_path / "epoch=2.ckpt", fail)


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    path = tmp_path / "checkpoints" / "latest.ckpt"
    with pytest.raises(CheckpointError, match=f"cannot write {path}: File exists; nothing was"):
        write(path)


SAVE = """
    import sys, torch, dill
    from omegaconf import OmegaConf
    from diffusion_policy.common.checkpoint_util import atomic_write
    from diffusion_policy.common.errors import CheckpointError
    def save(path, version, size):
        weight = torch.full((size,), float(version))
        payload = {"cfg": OmegaConf.create({"v": version}), "state_dicts": {"model": {"w": weight}},
                   "pickles": {}}
        atomic_write(path, lambda file: torch.save(payload, file, pickle_module=dill))
"""


def python(code, *args, **kwargs):
    return [sys.executable, "-c", textwrap.dedent(SAVE) + textwrap.dedent(code), *map(str, args)]


def run(command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


FILL_UP = """
    save(sys.argv[1], 1, 1000)
    {limit}
    try:
        save(sys.argv[1], 2, 1_000_000)
    except CheckpointError as error:
        print(error)
"""


def check_intact_after_failure(done, path):
    assert done.returncode == 0, done.stderr
    assert f"cannot write {path}" in done.stdout
    assert f"the previous {path} is intact" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_a_write_that_the_system_really_refuses_leaves_the_previous_checkpoint(tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    path = tmp_path / "latest.ckpt"
    done = run(python(FILL_UP.format(limit=limit), path))
    check_intact_after_failure(done, path)
    assert "File too large" in done.stdout
    assert load_payload(path)["cfg"].v == 1
    assert names(tmp_path) == ["latest.ckpt"]


def test_a_disk_that_is_really_full_leaves_the_previous_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    isolated = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]
    mount = f"mount -t tmpfs -o size=1m none '{disk}'"
    if shutil.which("unshare") is None or run([*isolated, mount]).returncode != 0:
        pytest.skip("a small file system cannot be mounted here (needs unshare and mount)")
    path = disk / "latest.ckpt"
    # The mount lives as long as this shell, so the reading happens in it as well.
    read = "from diffusion_policy.common.checkpoint_file import load_payload; import os"
    read += "\n    print(load_payload(sys.argv[1])['cfg'].v, os.listdir(sys.argv[2]))"
    script = FILL_UP.format(limit="") + "\n    sys.stdout.flush()\n    " + read
    done = run([*isolated, f'{mount}; exec "$@"', "sh", *python(script, path, disk)])
    sentence, rest = done.stdout.splitlines()
    assert rest == "1 ['latest.ckpt']"
    assert "No space left on device (it needs more than" in sentence
    assert f"the previous {path} is intact; free some space and resume" in sentence


def test_a_writer_killed_at_any_instant_leaves_a_whole_file(tmp_path):
    path = tmp_path / "latest.ckpt"
    code = """
        import itertools, sys
        from diffusion_policy.common.checkpoint_util import atomic_write
        for version in itertools.count(1):
            pieces = [version.to_bytes(8, "big") * 10_000] * 50
            atomic_write(sys.argv[1], lambda file: [file.write(piece) for piece in pieces])
            print(version, flush=True)
    """
    rng = random.Random(0)
    kills_while_writing = 0
    for _ in range(12):
        command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.03))
            process.send_signal(signal.SIGKILL)
        kills_while_writing += any(name.endswith(".partial") for name in names(tmp_path))
        content = path.read_bytes()
        assert content == content[:8] * 500_000
    assert kills_while_writing > 0, "no kill hit a write; the test has lost its point"
    write(tmp_path / "epoch=1.ckpt")
    assert names(tmp_path) == ["epoch=1.ckpt", "latest.ckpt"]


def test_leftovers_of_dead_writers_are_removed_and_those_of_living_ones_kept(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        kept = f".latest.ckpt.{living.pid}.partial"
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        for name in (kept, f".x=1.5.ckpt.{dead.pid}.partial", f".old.ckpt.{os.getpid()}.partial"):
            (tmp_path / name).write_bytes(b"half")
        (tmp_path / ".notes.partial").write_text("not ours")
        (tmp_path / f".huge.ckpt.{10**30}.partial").write_text("not ours either")
        write(tmp_path / "latest.ckpt")
        assert set(names(tmp_path)) == {
            *("latest.ckpt", kept, ".notes.partial", f".huge.ckpt.{10**30}.partial")
        }
        living.communicate(b"\n")


def test_two_threads_of_one_process_do_not_remove_each_others_files(tmp_path):
    def while_another_is_written(file):
        file.write(b"outer")
        write(tmp_path / "inner.ckpt", b"inner")

    atomic_write(tmp_path / "outer.ckpt", while_another_is_written)
    assert (tmp_path / "outer.ckpt").read_bytes() == b"outer"
    assert names(tmp_path) == ["inner.ckpt", "outer.ckpt"]


# ---- a second name ------------------------------------------------------------------------------


def test_a_link_costs_nothing_and_outlives_the_replacement_of_its_source(tmp_path):
    source, target = tmp_path / "latest.ckpt", tmp_path / "epoch=1.ckpt"
    write(source, b"one")
    target.write_bytes(b"something older")
    link_or_copy(source, target)
    assert target.samefile(source)
    link_or_copy(source, target)  # again: nothing changes, nothing is left behind
    write(source, b"two")
    assert (source.read_bytes(), target.read_bytes()) == (b"two", b"one")
    assert names(tmp_path) == ["epoch=1.ckpt", "latest.ckpt"]


def test_where_links_are_impossible_a_copy_is_made(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    write(tmp_path / "latest.ckpt", b"one")
    link_or_copy(tmp_path / "latest.ckpt", tmp_path / "epoch=1.ckpt")
    assert (tmp_path / "epoch=1.ckpt").read_bytes() == b"one"
    assert not (tmp_path / "epoch=1.ckpt").samefile(tmp_path / "latest.ckpt")
    assert names(tmp_path) == ["epoch=1.ckpt", "latest.ckpt"]


def test_the_newest_other_checkpoint_is_neither_this_one_nor_empty(tmp_path):
    for age, name in enumerate(["a.ckpt", "b.ckpt", "this.ckpt", "empty.ckpt", "x.txt"]):
        (tmp_path / name).write_text("" if "empty" in name else "content")
        os.utime(tmp_path / name, (age, age))
    assert newest_other_checkpoint(tmp_path / "this.ckpt") == tmp_path / "b.ckpt"
    (tmp_path / "link.ckpt").symlink_to(tmp_path / "gone.ckpt")
    assert newest_other_checkpoint(tmp_path / "this.ckpt") == tmp_path / "b.ckpt"
    assert newest_other_checkpoint(tmp_path / "nowhere" / "x.ckpt") is None


# ---- the best k ---------------------------------------------------------------------------------

FORMAT = "epoch={epoch:04d}-score={score:.3f}.ckpt"


def manager(folder, k=2, mode="max", format_str=FORMAT):
    return TopKCheckpointManager(folder, "score", mode=mode, k=k, format_str=format_str)


def save(topk, epoch, score):
    """One epoch of a run: decide, write, commit."""
    path = topk.propose({"epoch": epoch, "score": score})
    if path is not None:
        write(path)
        topk.commit(path)
    return path


def test_the_sequences_of_the_original_are_reproduced(golden, tmp_path):
    cases = json.loads((golden / "j_multirun_expected.json").read_text())["topk"]
    for i, case in enumerate(cases):
        for variant in (TopKCheckpointManager.get_ckpt_path, TopKCheckpointManager.propose):
            folder = tmp_path / f"{i}-{variant.__name__}"
            folder.mkdir()
            topk = TopKCheckpointManager(
                folder, "score", case["mode"], case["k"], case["format_str"]
            )
            for step in case["seq"]:
                path = variant(topk, {"epoch": step["epoch"], "score": step["score"]})
                if path is not None:
                    write(path)
                    if variant is TopKCheckpointManager.propose:
                        topk.commit(path)
                assert (path and os.path.relpath(path, folder)) == step["path"]
                assert names(folder) == step["files"]


@pytest.mark.parametrize(("mode", "kept"), [("max", [1, 3]), ("min", [0, 2])])
def test_the_best_two_stay(tmp_path, mode, kept):
    topk = manager(tmp_path, mode=mode)
    for epoch, score in enumerate([0.3, 0.9, 0.1, 0.5, 0.4]):
        save(topk, epoch, score)
    assert [int(name[6:10]) for name in names(tmp_path)] == kept


@pytest.mark.parametrize("mode", ["max", "min"])
def test_an_equal_score_is_not_better_and_among_equals_the_oldest_goes_first(tmp_path, mode):
    topk = manager(tmp_path, mode=mode)
    assert save(topk, 0, 0.5)
    assert save(topk, 1, 0.5)
    assert save(topk, 2, 0.5) is None
    save(topk, 3, 0.6 if mode == "max" else 0.4)
    assert [int(name[6:10]) for name in names(tmp_path)] == [1, 3]


def test_a_proposal_changes_nothing_until_it_is_committed(tmp_path):
    topk = manager(tmp_path, k=1)
    old = save(topk, 0, 0.1)
    new = topk.propose({"epoch": 1, "score": 0.2})
    assert topk.path_value_map == {old: 0.1}
    assert names(tmp_path) == ["epoch=0000-score=0.100.ckpt"]
    write(new)
    assert Path(old).exists(), "the old one goes only when the new one is committed"
    topk.commit(new)
    assert topk.path_value_map == {new: 0.2}
    assert names(tmp_path) == ["epoch=0001-score=0.200.ckpt"]


def test_a_proposal_whose_write_failed_is_forgotten(tmp_path):
    topk = manager(tmp_path, k=1)
    save(topk, 0, 0.1)
    topk.propose({"epoch": 1, "score": 0.9})  # the disk was full
    assert save(topk, 2, 0.2)
    assert names(tmp_path) == ["epoch=0002-score=0.200.ckpt"]


def test_saving_under_the_same_name_again_replaces_and_displaces_nothing(tmp_path):
    topk = manager(tmp_path, k=2)
    save(topk, 0, 0.5)
    save(topk, 1, 0.6)
    save(topk, 0, 0.5001)  # the epoch is repeated after a resume
    assert list(topk.path_value_map.values()) == [0.6, 0.5001]
    assert len(names(tmp_path)) == 2


@pytest.mark.parametrize("nan", [math.nan, np.float32("nan"), torch.tensor(math.nan)])
def test_nan_is_never_among_the_best(tmp_path, caplog, nan):
    topk = manager(tmp_path, k=1)
    assert save(topk, 0, nan) is None
    assert "score is NaN" in caplog.text
    assert save(topk, 1, torch.tensor(0.1))
    assert save(topk, 2, np.float64(0.2))
    assert names(tmp_path) == ["epoch=0002-score=0.200.ckpt"]


def test_a_missing_metric_is_warned_about_once_and_nothing_is_kept(tmp_path, caplog):
    topk = manager(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert topk.propose({"epoch": 0}) is None
        assert topk.get_ckpt_path({"epoch": 1}) is None
    [record] = caplog.records
    assert "monitor_key 'score' is not in the log" in record.getMessage()


def test_k_zero_keeps_nothing_and_needs_no_metric(tmp_path, caplog):
    assert manager(tmp_path, k=0).get_ckpt_path({}) is None
    assert not caplog.records


def test_a_format_with_an_unknown_key_is_one_sentence(tmp_path):
    topk = TopKCheckpointManager(tmp_path, "loss", format_str=FORMAT)
    with pytest.raises(ConfigError, match=r"format_str .* uses 'score', which is not in the log"):
        topk.propose({"epoch": 0, "loss": 1.0})


@pytest.mark.parametrize(
    "format_str",
    ["../{epoch}.ckpt", "/tmp/{epoch}.ckpt", "a/b.ckpt", ".hidden", "", "..", "x" * 300, "a\0b"],
)
def test_a_name_lies_in_the_folder_of_the_checkpoints(tmp_path, format_str):
    with pytest.raises(ConfigError, match="which is not the name of a file in the folder"):
        manager(tmp_path, format_str=format_str).propose({"score": 1.0, "epoch": 1})


@pytest.mark.parametrize("format_str", ["{epoch.nothing}", "{epoch[0]}", "{epoch:x?}", "{0}"])
def test_a_format_that_cannot_be_filled_in_is_a_sentence(tmp_path, format_str):
    with pytest.raises(ConfigError, match=r"format_str .*(cannot be filled in|uses)"):
        manager(tmp_path, format_str=format_str).propose({"score": 1.0, "epoch": 1})


@pytest.mark.parametrize(("option", "value"), [("mode", "best"), ("k", -1)])
def test_impossible_options_are_refused(tmp_path, option, value):
    with pytest.raises(ConfigError, match=f"checkpoint.topk.{option} is {value!r}"):
        TopKCheckpointManager(tmp_path, "score", **{option: value})


# ---- the best k after a resume ------------------------------------------------------------------


def resume(topk, folder=None):
    restored = manager(folder or topk.save_dir, topk.k, topk.mode, topk.format_str)
    restored.load_state_dict(json.loads(json.dumps(topk.state_dict())))
    return restored


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_run_resumed_after_every_epoch_keeps_the_same_files(tmp_path, mode):
    rng = random.Random(0)
    scores = [rng.choice([0.1, 0.25, 0.2501, 0.2504, rng.random()]) for _ in range(30)]
    once, resumed = manager(tmp_path / "once", 3, mode), manager(tmp_path / "resumed", 3, mode)
    for epoch, score in enumerate(scores):
        save(once, epoch, score)
        save(resumed, epoch, score)
        resumed = resume(resumed)
        assert names(tmp_path / "once") == names(tmp_path / "resumed")
        assert list(once.path_value_map.values()) == list(resumed.path_value_map.values())


def test_a_moved_run_folder_keeps_its_list(tmp_path):
    topk = manager(tmp_path / "a", k=1)
    save(topk, 0, 0.5)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = resume(topk, tmp_path / "b")
    assert save(moved, 1, 0.4) is None
    assert save(moved, 2, 0.6)
    assert names(tmp_path / "b") == ["epoch=0002-score=0.600.ckpt"]


def test_files_that_are_gone_are_dropped(tmp_path):
    topk = manager(tmp_path, k=1)
    path = save(topk, 0, 0.5)
    os.remove(path)
    restored = resume(topk)
    assert restored.path_value_map == {}
    assert save(restored, 1, 0.1)


def test_a_crafted_state_cannot_make_the_run_delete_files_elsewhere(tmp_path):
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    topk = manager(tmp_path / "checkpoints", k=1)
    topk.load_state_dict({"files": {"../thesis.tex": 0.1, str(victim): 0.1}, "proposed": {}})
    save(topk, 0, 0.5)
    assert victim.exists()


def kill_between_writing_and_committing(tmp_path):
    topk = manager(tmp_path, k=2)
    save(topk, 0, 0.30011)
    save(topk, 1, 0.4)
    new = topk.propose({"epoch": 2, "score": 0.30024})
    return topk, new


def test_a_kill_before_the_new_file_was_in_place_keeps_the_old_ones(tmp_path):
    topk, new = kill_between_writing_and_committing(tmp_path)
    restored = resume(topk)
    assert len(names(tmp_path)) == 2
    # The caller can still bring the file and commit, as if nothing had happened.
    write(new)
    restored.commit(new)
    assert sorted(restored.path_value_map.values()) == [0.30024, 0.4]
    assert [int(name[6:10]) for name in names(tmp_path)] == [1, 2]


def test_a_kill_after_the_new_file_was_in_place_counts_it_with_its_exact_value(tmp_path):
    topk, new = kill_between_writing_and_committing(tmp_path)
    write(new)
    restored = resume(topk)
    assert len(restored.path_value_map) == 3, "nothing is deleted by reading"
    assert save(restored, 3, 0.3002) is None, "it must beat the second best, not the third"
    assert save(restored, 4, 0.3003)
    assert [int(name[6:10]) for name in names(tmp_path)] == [1, 4]


def test_a_file_that_the_state_does_not_know_is_not_listed_and_never_deleted(tmp_path):
    topk = manager(tmp_path, k=2)
    save(topk, 0, 0.3)
    before = topk.state_dict()
    stranger = save(topk, 1, 0.4)
    restored = manager(tmp_path, k=2)
    restored.load_state_dict(before)
    for epoch in range(2, 6):
        save(restored, epoch, epoch / 10)
    assert [os.path.basename(p)[6:10] for p in restored.path_value_map] == ["0004", "0005"]
    assert Path(stranger).exists()


# ---- a commit that a kill cut short --------------------------------------------------------------


def epochs(folder):
    return [int(name[6:10]) for name in names(folder) if name != "latest.ckpt"]


def cut_short(tmp_path, linked, deleted):
    """A run with k=2, killed at the end of its third epoch: (its state, its checkpoint)."""
    topk, new = kill_between_writing_and_committing(tmp_path)
    state = json.loads(json.dumps(topk.state_dict()))
    latest = tmp_path / "latest.ckpt"
    write(latest)
    if linked:
        link_or_copy(latest, new)
    if deleted:
        topk.commit(new)
    return state, latest


@pytest.mark.parametrize(
    ("linked", "deleted"), [(False, False), (True, False), (True, True)], ids=str
)
@pytest.mark.parametrize("k", [2, 0, 1, 9])
def test_a_commit_is_finished_as_it_was_begun(tmp_path, linked, deleted, k):
    """Whatever k is by then: nobody asked for more to be deleted."""
    state, latest = cut_short(tmp_path, linked, deleted)
    topk = manager(tmp_path, k=k)
    topk.load_state_dict(state)
    assert epochs(tmp_path) == ([1, 2] if deleted else [0, 1, 2] if linked else [0, 1])
    topk.finish_commit(latest)
    assert epochs(tmp_path) == [1, 2]
    assert list(topk.path_value_map.values()) == [0.4, 0.30024]
    assert topk.state_dict() == {
        "files": {"epoch=0001-score=0.400.ckpt": 0.4, "epoch=0002-score=0.300.ckpt": 0.30024},
        "proposed": {},
        "displaced": [],
    }


def test_a_state_without_a_proposal_finishes_nothing(tmp_path):
    topk = manager(tmp_path, k=2)
    for epoch in range(2):
        save(topk, epoch, 0.1)
    fewer = manager(tmp_path, k=1)
    fewer.load_state_dict(topk.state_dict())
    fewer.load_state_dict(fewer.state_dict())
    fewer.finish_commit(tmp_path / "latest.ckpt")
    assert epochs(tmp_path) == [0, 1]


def test_a_commit_that_an_older_version_began_deletes_nothing(tmp_path):
    state, latest = cut_short(tmp_path, linked=True, deleted=False)
    del state["displaced"]
    topk = manager(tmp_path, k=2)
    topk.load_state_dict(state)
    topk.finish_commit(latest)
    assert epochs(tmp_path) == [0, 1, 2]
    save(topk, 3, 0.5)
    assert epochs(tmp_path) == [1, 3]


def test_a_crafted_state_cannot_name_files_elsewhere_for_deletion(tmp_path):
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    (tmp_path / "checkpoints").mkdir()
    topk = manager(tmp_path / "checkpoints", k=1)
    topk.load_state_dict({"files": {}, "proposed": {}, "displaced": ["../thesis.tex", str(victim)]})
    topk.finish_commit(tmp_path / "checkpoints" / "latest.ckpt")
    assert victim.exists()


# ---- the best k without a state ------------------------------------------------------------------


def test_without_a_state_the_list_is_rebuilt_from_the_file_names(tmp_path):
    for name in (
        *(
            "epoch=0005-score=0.900.ckpt",
            "epoch=0007-score=-0.25.ckpt",
            "epoch=0008-score=1e-05.ckpt",
        ),
        *("latest.ckpt", "epoch=0009-score=nan.ckpt", "epoch=0009-score=.ckpt", "notes.txt"),
        *("epoch=0005-score=0.900.ckpt.bak", ".epoch=0001-score=0.1.ckpt.77.partial"),
    ):
        (tmp_path / name).write_text("x")
    topk = manager(tmp_path, k=3)
    topk.load_state_dict({})
    assert {os.path.basename(p): v for p, v in topk.path_value_map.items()} == {
        "epoch=0005-score=0.900.ckpt": 0.9,
        "epoch=0007-score=-0.25.ckpt": -0.25,
        "epoch=0008-score=1e-05.ckpt": 1e-05,
    }


@pytest.mark.parametrize(
    "format_str", ["epoch={epoch}.ckpt", "best.ckpt", "a{score:.2f}b{score}.ckpt"]
)
def test_rebuilding_from_names_copes_with_any_format(tmp_path, format_str):
    topk = manager(tmp_path, k=5, format_str=format_str)
    save(topk, 1, 0.25)
    (tmp_path / "other.ckpt").write_text("x")
    restored = manager(tmp_path, k=5, format_str=format_str)
    restored.load_state_dict({})
    found = list(restored.path_value_map.values())
    assert found == ([0.25] if "score" in format_str else [])


def test_the_state_is_plain_and_goes_through_a_checkpoint(tmp_path):
    topk = manager(tmp_path / "checkpoints", k=1)
    path = topk.propose({"epoch": 0, "score": torch.tensor(0.5)})
    payload = {
        "cfg": OmegaConf.create({}),
        "state_dicts": {"topk": topk.state_dict()},
        "pickles": {},
    }
    atomic_write(path, lambda file: torch.save(payload, file))
    restored = manager(tmp_path / "checkpoints", k=1)
    restored.load_state_dict(load_payload(path)["state_dicts"]["topk"])
    assert restored.path_value_map == {path: 0.5}


def test_the_module_does_not_import_torch():
    code = "import sys, diffusion_policy.common.checkpoint_util as m; print('torch' in sys.modules)"
    done = run([sys.executable, "-c", code])
    assert done.stdout.strip() == "False"
    assert checkpoint_util.__doc__
