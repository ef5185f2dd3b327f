"""The list and the journal: what they say, and that nothing else can be made of them."""

import json

import pytest
from damage import flip_a_bit, tree

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.storage.checksums import (
    CHECKSUMS,
    JOURNAL,
    Checksums,
    DamagedFileError,
    Ledger,
    digest_of,
    journal_line,
)


def make_list() -> Checksums:
    checksums = Checksums(episode_ends=[3, 7])
    checksums.note("data/obs/.zarray", b"{}")
    checksums.note("data/obs/0.0", b"old")
    checksums.set_redo({"meta/episode_ends/0": b"new", "meta/seed/0": None})
    return checksums


def load(journal: bytes = b"", content: bytes | None = None) -> Ledger | None:
    files = {CHECKSUMS: make_list().encode() if content is None else content, JOURNAL: journal}
    return Ledger.load("x.zarr", files.get)


def test_a_list_is_read_as_it_was_written():
    checksums = make_list()
    assert Checksums.decode(checksums.encode()) == checksums
    assert checksums.documents == {"data/obs/.zarray": "{}"}
    assert Ledger.load("x.zarr", {}.get) is None


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_a_list_or_a_journal_is_noticed(bit):
    journal = journal_line("data/obs/0.0", b"new") + journal_line("data/obs/1.0", None)
    for name, whole in [("content", make_list().encode()), ("journal", journal)]:
        for at in range(len(whole)):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            try:
                ledger = load(**{name: bytes(damaged)})
            except DamagedFileError:
                continue
            assert ledger is not None
            if name == "content":  # space, where JSON does not care
                assert ledger.listed == make_list()
            else:  # the last line is taken for one that a kill has cut
                assert ledger.announced.keys() <= {"data/obs/0.0"}


def test_a_file_holds_what_is_listed_or_was_announced():
    ledger = load(journal_line("data/obs/0.0", b"new") + journal_line("data/obs/1.0", b"more"))
    assert ledger is not None
    for key, sound, damaged in [
        ("data/obs/0.0", (b"old", b"new"), (None, b"other")),
        ("data/obs/1.0", (None, b"more"), (b"other",)),
        ("data/obs/2.0", (None,), (b"other",)),
        ("meta/episode_ends/0", (None, b"anything"), ()),  # it is to be written again
    ]:
        assert [ledger.problem(key, content) for content in sound] == [None] * len(sound)
        assert all(ledger.problem(key, content) for content in damaged)


def test_a_line_that_a_kill_has_cut_says_nothing():
    line = journal_line("data/obs/0.0", b"new")
    for n in range(len(line)):
        ledger = load(line[:n])
        assert ledger is not None
        assert ledger.announced == {}


@pytest.fixture
def store(tmp_path):
    buffer = ReplayBuffer.create_from_path(tmp_path / "x.zarr", mode="a")
    buffer.add_episode({"obs": [[1.0], [2.0]]})
    return tmp_path / "x.zarr"


def forge(path, **changes) -> None:
    """A list that somebody wrote who knows how its checksum is computed."""
    document = json.loads((path / CHECKSUMS).read_bytes()) | changes
    del document["sha256"]
    digest = digest_of(json.dumps(document, sort_keys=True, indent=0).encode())
    content = json.dumps({**document, "sha256": digest}, sort_keys=True, indent=0)
    (path / CHECKSUMS).write_text(content)


@pytest.mark.parametrize(
    "key",
    ["../evil/.zarray", "/evil/.zarray", "data/../../.zgroup", "authorized_keys", "a/b.py", ""]
    + ["data\\..\\.zarray", "..", ".checksums.json", ".zshrc"],
)
@pytest.mark.parametrize("where", ["files", "documents", "redo", "journal"])
def test_a_forged_list_reaches_no_file_outside_of_the_store(store, tmp_path, key, where):
    if where == "journal":
        (store / JOURNAL).write_bytes(journal_line(key, b"x"))
    else:
        forge(store, **{where: {key: "eA=="}})
    before = tree(tmp_path)
    for mode in ("r", "a"):
        with pytest.raises(DataError, match=r"\.checksums\.(json|journal) is damaged .*is no file"):
            ReplayBuffer.create_from_path(store, mode=mode)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"files": []},
        {"files": {"data/obs/0.0": 3}},
        {"documents": None},
        {"episode_ends": "12"},
        {"episode_ends": [1.5]},
        {"episode_ends": [-1]},
        {"redo": {"data/obs/0.0": 3}},
        {"redo": {"data/obs/0.0": "no base64"}},
        {"version": 2},
        {"version": None},
    ],
)
def test_a_forged_list_of_another_shape_is_a_sentence(store, changes):
    forge(store, **changes)
    with pytest.raises(DataError, match=r"\.checksums\.json is damaged"):
        ReplayBuffer.copy_from_path(store)


def test_a_damaged_list_is_a_sentence_with_a_way_out(store):
    flip_a_bit(store / CHECKSUMS)
    with pytest.raises(DataError, match=r"remove \.checksums\.json from it"):
        ReplayBuffer.copy_from_path(store)
