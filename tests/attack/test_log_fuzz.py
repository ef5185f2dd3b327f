"""Runs of other people: whatever their files say, a report is a page or a sentence, and at once.

And it tells nothing that is not theirs: neither the environment nor a file outside of the run.
"""

import json
import os
import shutil
import time

import pytest
import yaml
from omegaconf import OmegaConf
from pages import Document

from diffusion_policy.common.errors import DiffusionPolicyError
from diffusion_policy.config.targets import TargetPolicy, targets_allowed_by
from diffusion_policy.multirun.monitor import MetricsMonitor
from diffusion_policy.multirun.progress import describe_numbers
from diffusion_policy.multirun.rollout_log import RolloutLog
from diffusion_policy.multirun.status import SweepStatus
from diffusion_policy.multirun.sweep import load_sweep
from diffusion_policy.report.build import Report, build_report
from diffusion_policy.report.serve import Site

ENV_SECRET, FILE_SECRET = "hunter2-of-the-environment", "hunter2-of-a-file"
BOUND_S = 60.0  # an ordinary one takes a hundredth; what is quadratic, or waits, takes longer
KEY = "test/mean_score"

CONFIG = {
    "name": "unet",
    "task_name": "${task.name}",
    "horizon": 16,
    "n": "${eval:'${horizon}*2'}",
    "training": {"seed": 42, "num_epochs": 4, "rollout_every": 1},
    "task": {"name": "pusht", "shape": [1, 2]},
    "logging": {"mode": "disabled"},
}
HYDRA = {
    "hydra": {
        "job": {"name": "train", "config_name": "demo"},
        "overrides": {"hydra": ["hydra.run.dir=x"], "task": ["a=1"]},
        "runtime": {"config_sources": [{"provider": "command-line", "path": "/x"}]},
    }
}


def files_of_a_run(seed):
    """name -> content, a list for JSON lines, of a small run as train.py leaves it."""
    rows, media, times = [], [], []
    for step in range(12):
        row = {"train_loss": 1 / (step + 1), "global_step": step, "epoch": step // 3, "lr": 1e-4}
        if step % 3 == 2:
            row |= {KEY: 0.1 * step, "test/sim_max_reward_10000": 0.5, "val_loss": 2.0}
            media.append({"global_step": step, "test/sim_video_10000": "media/a.mp4"})
            times.append({"epoch": step // 3, "global_step": step, "time/step": 1.0})
        rows.append(row)
    memory = {"host_peak_bytes": 2**30, "device_peak_bytes": 0}
    return {
        "logs.json.txt": rows,
        "media.json.txt": media,
        "times.json.txt": times,
        "run_info.json": {"seconds": 5.0, "sessions": 1, "machine": {"cpu": "x"}, "memory": memory},
        ".hydra/config.yaml": CONFIG | {"training": CONFIG["training"] | {"seed": seed}},
        ".hydra/hydra.yaml": HYDRA,
        ".hydra/overrides.yaml": ["training.seed=42", "name=${task.name}"],
    }


def files_of_a_sweep():
    tasks = [{"name": f"train_{i}", "seed": i, "command": ["python", "x"]} for i in range(2)]
    record = {
        "folder": "PLACE",
        "config_name": "x",
        "config_dir": "y",
        "overrides": [],
        "group": "g",
    }
    record |= {"seeds": [0, 1], "name_base": "b", "tasks": tasks}
    status = {"state": "finished", "attempts": 1, "exit_code": 0, "host": "h"}
    files = {
        "sweep.json": record,
        "status.json": {"updated": "x", "backend": "process", "tasks": {"train_0": status}},
        "config.yaml": CONFIG,
        "metrics/metrics.json": {"max/x": 1.0},
        "metrics/logs.json.txt": [{"global_step": 2, "epoch": 0, "max/x": 1.0}] * 6,
    }
    for i in range(2):
        files |= {f"train_{i}/{name}": content for name, content in files_of_a_run(i).items()}
    return files


# ---- what is done to them ------------------------------------------------------------------------

NUMBERS = [0, -1, 1, 0.5, 1e-320, 1e308, -1e308, 2**53, 2**63, 10**30, 10**400, True]
NUMBERS += [float("nan"), float("inf"), float("-inf")]
TEXTS = ["", "x", "\0", "\ud800", "a\nb", "</script><script>alert(1)</script>", '"><img onerror=x>']
TEXTS += [
    "x" * 100_000,
    "é数据",
    "${",
    "${oc.env:SECRET}",
    "${name}",
    "${..}",
    "${eval:1/0}",
    "nan",
]
TEXTS += [
    "${oc.decode:${oc.env:SECRET}}",
    "${oc.select:x,${oc.env:SECRET}}",
    "${hydra:runtime.cwd}",
]
TEXTS += [
    "{{SECRET}}",
    "$SECRET",
    "%SECRET%",
    "../../secret.mp4",
    "/proc/self/environ",
    "~/x",
    "???",
]
KEYS = [KEY, "epoch", "global_step", "train_loss", "time/step", "name", "seed", "tasks", "training"]
KEYS += [
    "test/sim_video_1",
    "test/sim_max_reward_1",
    "x/mean_score",
    "a.b",
    "a[0]",
    "\ud800",
    "",
    "$",
]
KEYS += ["test/sim_max_reward_" + "9" * 400, "</td>/mean_score", "__proto__", "constructor"]


def any_value(rng, folder):
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(NUMBERS)
    if kind == 1:
        return rng.choice([*TEXTS, f"{folder.parent}/secret.mp4", f"{folder.parent}/secret"])
    if kind == 2:
        return [any_value(rng, folder) for _ in range(rng.randrange(3))]
    if kind == 3:
        return {rng.choice(KEYS): any_value(rng, folder) for _ in range(rng.randrange(3))}
    return rng.choice([None, rng.random(), rng.randrange(100)])


def change(rng, tree, folder):
    """Changes something at some place of nested lists and mappings."""
    places = [*tree] if isinstance(tree, dict) else [*range(len(tree))]
    inner = [place for place in places if isinstance(tree[place], dict | list)]
    if inner and rng.random() < 0.7:
        change(rng, tree[rng.choice(inner)], folder)
        return
    what = rng.randrange(4)
    if what == 0 and places:
        del tree[rng.choice(places)]
    elif what == 1 and places:
        tree[rng.choice(places)] = any_value(rng, folder)
    elif isinstance(tree, dict):
        tree[rng.choice(KEYS)] = any_value(rng, folder)
    else:
        tree.insert(rng.randrange(len(tree) + 1), any_value(rng, folder))


def encode(name, content):
    if name.endswith(".txt"):
        return "".join(json.dumps(row) + "\n" for row in content).encode()
    if name.endswith(".json"):
        return json.dumps(content).encode()
    return yaml.safe_dump(content, allow_unicode=False, sort_keys=False).encode()


ODD_LINES = [b"\n", b"[1]\n", b"null\n", b"[" * 200_000 + b"\n", b"\xff\xfe\n", b"\0" * 100 + b"\n"]
ODD_LINES += [b'{"a": ' * 50_000 + b"\n", b'{"global_step": "x"}\n', b'{"epoch": NaN}\n', b"{}\n"]
ODD_LINES += [b'{"epoch": 1}, {"epoch": 2}\n', b'{"a": 1\n', b'"b": 2}\n', b'{"a": "\\ud800"}\n']
ODD_LINES += [json.dumps({f"k{i}": i for i in range(50_000)}).encode() + b"\n"]
ODD_LINES += [b'{"a": "' + b"x" * 5 * 2**20 + b'"}\n', b"9" * 5000 + b"\n"]
ODD_LINES += [json.dumps({f"{i}/mean_score": 1.0 for i in range(3_000)}).encode() + b"\n"]
BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (i, i, b", ".join([b"*%c" % (i - 1)] * 9)) for i in range(98, 110)
)
REFERENCES = b"".join(
    b"x%d: {a: '${x%d}', b: '${x%d}'}\n" % (i, i - 1, i - 1) for i in range(1, 60)
)
ODD_YAML = [BOMB, REFERENCES, b"a: " + b"[" * 5000, b"a: 1" + b":59" * 50_000, b"\n" * 500_000, b""]
ODD_YAML += [
    b"a: ${oc.env:SECRET}\nname: ${a}\ntask: {name: '${name}'}\n",
    b"- 1\n",
    b"a: !!int ''",
]
ODD_YAML += [b"name: ${oc.env:SECRET}\ntraining: ${all}\nall: {seed: '${name}'}\n", b"\xff", b"1"]


def damage(rng, name, text):
    """Changes the bytes of a file."""
    what = rng.randrange(5)
    if what == 0:
        return text[: rng.randrange(len(text) + 1)]
    if what == 1:
        where = rng.randrange(len(text) + 1)
        return text[:where] + bytes([rng.randrange(256)]) + text[where + 1 :]
    if what == 2:
        return rng.choice(ODD_YAML) if name.endswith(".yaml") else rng.choice(ODD_LINES)
    if what == 3 and name.endswith(".txt"):
        lines = text.splitlines(keepends=True)
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(ODD_LINES))
        return b"".join(lines)
    return text + rng.choice([b"\0" * 50, b"{", b"\n\n", b"\xff", b"x: 1\n", text])


def remove(path):
    """Removes a file, a folder, or what :func:`exchange` has made of it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def exchange(rng, path):
    """Puts something else in the place of a file or folder."""
    target = (
        path.parent if path.parent.name in (".hydra", "metrics") and rng.random() < 0.3 else path
    )
    if not os.path.lexists(target):
        return
    remove(target)
    secret = next(parent for parent in path.parents if (parent / "secret").exists()) / "secret"
    what = rng.randrange(7)
    if what == 0:
        os.mkfifo(target)
    elif what == 1:
        target.mkdir()
    elif what < 6:
        places = [secret, "/proc/self/environ", "/dev/zero", target.name, secret.parent / "secrets"]
        target.symlink_to(rng.choice([*places, "nowhere", "/", secret.with_name("secret.json")]))


def make_files(rng, files, folder):
    """Writes files of which one to three are odd; says what was done."""
    changed = rng.sample([*files], rng.randrange(1, 4))
    done = []
    for name, content in files.items():
        content = json.loads(json.dumps(content))
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        how = rng.choice(["change", "change", "damage", "exchange"]) if name in changed else ""
        if how == "change":
            for _ in range(rng.randrange(1, 6)):
                change(rng, content, folder)
        try:
            text = encode(name, content)
        except (yaml.YAMLError, ValueError):  # what YAML cannot hold
            text = encode(name, files[name])
        text = text.replace(b"PLACE", str(folder).encode())
        path.write_bytes(damage(rng, name, text) if how == "damage" else text)
        if how:
            done.append((how, name))
    for how, name in done:
        if how == "exchange":
            exchange(rng, folder / name)
    (folder / "media").mkdir(exist_ok=True)
    (folder / "media" / "a.mp4").write_bytes(b"video")
    return ", ".join(map(" ".join, done))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder beside files that nobody may read."""
    monkeypatch.setenv("SECRET", ENV_SECRET)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    line = json.dumps({"train_loss": 1.0, "global_step": 1, "note": FILE_SECRET, FILE_SECRET: 1.0})
    for path in (tmp_path / "secret", tmp_path / "secret.mp4", secrets / "logs.json.txt"):
        path.write_text(line + "\n")
    (tmp_path / "secret.json").write_text(json.dumps({"machine": {"cpu": FILE_SECRET}, "x": 1}))
    for name in ("config.yaml", "hydra.yaml", "overrides.yaml", "metrics.json"):
        (secrets / name).write_text(f"name: {FILE_SECRET}\n")
    return tmp_path


def told(attempt):
    """What an attempt told: the page, or the sentence."""
    try:
        text = attempt()
    except DiffusionPolicyError as error:
        text = str(error)
        assert text.count("\n") == 0, f"not one sentence: {text[:200]!r}"
        assert len(text) < 2_000, f"a sentence of {len(text)} characters"
    return text


def check(text):
    for secret in (ENV_SECRET, FILE_SECRET, "PATH=/"):
        assert secret not in text, f"the page tells {secret}"


def page_of(folders, output):
    text = build_report(folders, output).read_text()
    document = Document(text)
    assert len(document.all("script")) == 1
    assert not [tag for tag, attributes in document.elements if "onerror" in attributes]
    return text


def failures(attack, place, files, attempt):
    """Lines about the rounds that got through, and how many rounds there were."""
    lines, n = [], 0
    for n in attack.rounds():
        folder = place / f"run{n}"
        folder.mkdir()
        done = make_files(attack.rng, files, folder)
        start = time.monotonic()
        try:
            attempt(folder)
            seconds = time.monotonic() - start
            assert seconds < BOUND_S, f"took {seconds:.0f} s"
        except (Exception, RecursionError) as error:
            lines.append(f"round {n} ({done}): {type(error).__name__}: {str(error)[:300]}")
        remove(folder)
    return lines, n + 1


def test_a_report_of_an_odd_run_is_a_page_or_a_sentence(attack, place):
    def attempt(folder):
        check(told(lambda: page_of(folder, place / "report.html")))

    lines, n = failures(attack, place, files_of_a_run(42), attempt)
    attack.record("reports of one run with odd files", n, lines)


def test_a_report_of_an_odd_sweep_is_a_page_or_a_sentence(attack, place):
    def attempt(folder):
        check(told(lambda: page_of([folder], place / "report.html")))

    lines, n = failures(attack, place, files_of_a_sweep(), attempt)
    attack.record("reports of a sweep with odd files", n, lines)


def test_a_served_report_lives_on(attack, place):
    """A run becomes odd while it is watched, and ordinary again."""

    def attempt(folder):
        watched = place / "watched"
        remove(watched)
        for name, content in files_of_a_run(42).items():
            (watched / name).parent.mkdir(parents=True, exist_ok=True)
            (watched / name).write_bytes(encode(name, content))
        site = Site(Report([watched]))
        remove(watched)
        shutil.copytree(folder, watched, symlinks=True, copy_function=copy_anything)
        site.update()
        check(site.page.render_served() + site.problem)
        remove(watched)
        shutil.copytree(place / "good", watched)
        site.update()
        assert site.problem == ""

    for name, content in files_of_a_run(42).items():
        (place / "good" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "good" / name).write_bytes(encode(name, content))
    lines, n = failures(attack, place, files_of_a_run(42), attempt)
    attack.record("served reports of a run that becomes odd", n, lines)


def copy_anything(source, target):
    if os.path.islink(source) or os.path.isfile(source):
        shutil.copy2(source, target, follow_symlinks=False)
    else:
        os.mkfifo(target)


def test_a_sweep_of_odd_files_is_monitored_or_a_sentence(attack, place):
    def attempt(folder):
        def monitor():
            log = RolloutLog(folder / "train_0" / "logs.json.txt", [KEY])
            log.update()
            describe_numbers(log, KEY)
            watching = MetricsMonitor(folder, [KEY])
            watching.update(final=True)
            watching.is_done(3)

        def resume():
            with targets_allowed_by(TargetPolicy(everything=True)):  # its commands are others
                sweep = load_sweep(folder)
            OmegaConf.select(sweep.config, "training.num_epochs")

        def status():
            SweepStatus(folder, "process", ["train_0", "train_1"]).write()

        for part in (monitor, resume, status):
            told(lambda part=part: str(part()))

    lines, n = failures(attack, place, files_of_a_sweep(), attempt)
    attack.record("sweeps with odd files, monitored and resumed", n, lines)
