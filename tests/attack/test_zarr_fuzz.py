"""Stores that were damaged or forged: read as they were or refused in a sentence, never changed."""

import json
import os
import pathlib
import random
import shutil

import numpy as np
import pytest
from damage import tree, without_checksums

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.inspect.repair import repair
from diffusion_policy.inspect.summary import summarize
from diffusion_policy.storage.checksums import CHECKSUMS, digest_of
from diffusion_policy.storage.nodes import arrays_in

#: What is put in the place of values of a JSON file.
ODD_VALUES = [
    *(None, True, 0, -1, 1, 7, 2**31, 2**63, 2**70, 1.5, float("nan"), "", "x", "../../x", "\0"),
    *([], {}, [0], [-1, 2], [2**40, 2**40], [[1]], [1] * 40, ["4", "2"]),
    *("|O", "<f8", "<U99999999", "|V8", [["a", "<f4"]], "<M8[ns]", ">f4", "|S0"),
    *({"id": "pickle"}, {"id": "json2"}, {"id": "msgpack2"}, {"id": "vlen-utf8"}, {"id": "zlib"}),
    *([{"id": "pickle"}], [{"id": "delta", "dtype": "O"}], {"id": "blosc", "cname": "x"}, "/", "F"),
]


def flip(rng: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content or b"\0")
    for _ in range(rng.choice([1, 1, 1, 3])):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def insert(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice([1, 4, 1000])) + content[at:]


def blank(rng: random.Random, content: bytes) -> bytes:
    return bytes(len(content))


def change_json(rng: random.Random, content: bytes) -> bytes:
    """Another value somewhere, or one value less or more. Checksums are made to fit again."""
    try:
        document = json.loads(content)
    except ValueError:
        return flip(rng, content)
    holder = document
    while isinstance(holder, dict | list) and len(holder):
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        if not isinstance(holder[key], dict | list) or not holder[key] or rng.random() < 0.4:
            break
        holder = holder[key]
    else:
        return json.dumps(rng.choice(ODD_VALUES)).encode()
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD_VALUES)
    if isinstance(document, dict) and "sha256" in document:
        rest = {k: v for k, v in document.items() if k != "sha256"}
        document["sha256"] = digest_of(json.dumps(rest, sort_keys=True, indent=0).encode())
    return json.dumps(document).encode()


def damage(rng: random.Random, path: pathlib.Path) -> str:
    """Damages a store in one way; returns which."""
    names = sorted(tree(path))
    json_names = [name for name in names if "/.z" in f"/{name}" or name == CHECKSUMS]
    name = rng.choice(rng.choice([names, json_names]))
    kind = rng.choice(["content"] * 6 + ["remove", "remove", "copy", "folder", "special", "new"])
    file = path / name
    if kind == "content":
        how = rng.choice([flip, cut, insert, blank, *([change_json] * 3 * (name in json_names))])
        file.write_bytes(how(rng, file.read_bytes()))
        return f"{how.__name__} {name}"
    if kind == "remove":
        file.unlink()
    elif kind == "copy":
        other = rng.choice([*names, f"{name}0", f"data/more/{file.name}", f"meta/{file.name}"])
        (path / other).parent.mkdir(exist_ok=True)
        (path / other).write_bytes(file.read_bytes())
        return f"copy {name} to {other}"
    elif kind == "folder":
        shutil.rmtree(file.parent if file.parent != path else path / "data")
    elif kind == "special":
        file.unlink()
        rng.choice([os.mkfifo, pathlib.Path.mkdir, lambda p: p.symlink_to("/dev/zero")])(file)
    else:
        new = rng.choice(["zarr.json", ".committed_episode_ends.json", ".checksums.journal"])
        group = b'{"zarr_format": 3, "node_type": "group"}'
        content = rng.choice([b"", b"{", b"[]", b'{"episode_ends": [3]}', group])
        (path / rng.choice(["", "data", "data/obs"]) / new).write_bytes(content)
        return f"new {new}"
    return f"{kind} {name}"


def contents(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    meta = {f"meta/{key}": np.asarray(value[...]) for key, value in arrays_in(buffer.meta).items()}
    return {**{key: np.asarray(array[:]) for key, array in buffer.items()}, **meta}


def is_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k]) for k in one
    )


@pytest.fixture
def store(tmp_path) -> pathlib.Path:
    rng = np.random.default_rng(0)
    buffer = ReplayBuffer.create_from_path(tmp_path / "base.zarr", mode="a")
    for length in (5, 4, 6):
        obs = rng.normal(size=(length, 3))
        img = rng.integers(0, 255, (length, 4, 4, 3), dtype=np.uint8)
        buffer.add_episode({"obs": obs, "img": img}, compressors={"img": "disk", "obs": None})
    buffer.update_meta({"seed": np.arange(3), "name": np.array(["a", "bc"])})
    return tmp_path / "base.zarr"


def attack_once(path: pathlib.Path, original: dict[str, np.ndarray], is_certain: bool) -> None:
    """All ways to open a damaged store. ``is_certain``: it may not be read as something else."""
    files = None if any_special(path) else tree(path)
    for read in (ReplayBuffer.copy_from_path, ReplayBuffer.create_from_path):
        try:
            buffer = read(path)
            if not is_certain and buffer.backend == "zarr":
                continue  # whoever reads its arrays reads them by zarr itself
            found = contents(buffer)
        except DataError:
            continue
        assert not is_certain or is_equal(found, original), f"{read.__name__} read other data"
    try:
        summary = summarize(path)
        if summary.n_intact_episodes:
            repair(summary, path.with_name("new.zarr"))
            contents(ReplayBuffer.copy_from_path(path.with_name("new.zarr")))
    except DataError:
        pass
    assert files is None or tree(path) == files, "reading changed something"
    try:
        buffer = ReplayBuffer.create_from_path(path, mode="a")
    except DataError:
        assert files is None or tree(path) == files, "refused, but changed something"
        return
    assert not is_certain or len(buffer.episode_ends[:]) == 3, "opened for writing without episodes"
    kept = {name for name in files or () if name.startswith("data/") and "/.z" not in name}
    assert kept <= tree(path).keys(), "opening for writing deleted chunks"


def any_special(path: pathlib.Path) -> bool:
    return any(not p.is_file() and not p.is_dir() for p in path.rglob("*")) or any(
        p.is_symlink() for p in path.rglob("*")
    )


@pytest.mark.parametrize("checksums", [True, False], ids=["ours", "of-others"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_and_forged_stores(attack, store, tmp_path, checksums):
    """Without checksums, or where they were forged as well, all that is asked for is a sentence."""
    original = contents(ReplayBuffer.copy_from_path(store))
    if not checksums:
        without_checksums(store)
    failures, n = [], 0
    for n in attack.rounds():
        rng = random.Random(n)
        path = tmp_path / "work" / "x.zarr"
        shutil.rmtree(path.parent, ignore_errors=True)
        shutil.copytree(store, path)
        what = [damage(rng, path) for _ in range(rng.choice([1, 1, 1, 2]))]
        text = " ".join(what)
        is_certain = checksums and CHECKSUMS not in text and (path / CHECKSUMS).is_file()
        try:
            attack_once(path, original, is_certain)
        except Exception as error:
            failures.append(f"round {n} ({what}): {type(error).__name__}: {error}")
    kind = "with" if checksums else "without"
    attack.record(f"stores {kind} checksums, damaged or forged", n + 1, failures)
