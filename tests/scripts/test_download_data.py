"""Downloading published data from a server that may break, lie, or not know ranges."""

import hashlib
import http.server
import io
import pathlib
import shutil
import subprocess
import sys
import threading
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from damage import flip_a_bit, tree, without_checksums

from diffusion_policy.common.errors import DataError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.scripts import download_data
from diffusion_policy.scripts.download_data import (
    DATA,
    PublishedData,
    content_digest,
    download,
    fetch,
    unzip,
    verify_content,
)
from diffusion_policy.storage.checksums import CHECKSUMS, Checksums

STORE = "pusht/pusht_cchi_v7_replay.zarr"


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` as /pusht.zip; can ignore ranges, or break off after some bytes."""

    content = b""
    knows_ranges = True
    break_after: int | None = None
    status: int | None = None
    requests: list = []

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/pusht.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, range_ = self.server, self.headers.get("Range")
        server.requests.append(range_)
        if server.status is not None:
            self.send_error(server.status)
            return
        size, start = len(server.content), 0
        if range_ and server.knows_ranges:
            start = int(range_.removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        stop = size if server.break_after is None else start + server.break_after
        self.wfile.write(server.content[start:stop])

    def log_message(self, *_args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> pathlib.Path:
    """A small store that stands for the published one."""
    buffer, rng = ReplayBuffer.create_empty_numpy(), np.random.default_rng(0)
    for length in (40, 30):
        buffer.add_episode(
            {
                "action": rng.normal(size=(length, 2)).astype(np.float32),
                "img": rng.integers(0, 255, (length, 8, 8, 3)).astype(np.float32),
            }
        )
    path = buffer.save_to_path(
        tmp_path_factory.mktemp("published") / STORE, chunks={"img": (20, 8, 8, 3)}
    )
    return without_checksums(path)


def zip_of(store: pathlib.Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for path in sorted(store.rglob("*")):
            if path.is_file():
                file.write(path, f"{STORE}/{path.relative_to(store)}")
    return stream.getvalue()


@pytest.fixture(scope="module")
def archive(store) -> bytes:
    return zip_of(store)


@pytest.fixture(scope="module")
def published(store) -> PublishedData:
    return PublishedData(
        url="http://127.0.0.1:1/never.zip",
        store=STORE,
        sha256=None,
        n_episodes=2,
        shapes={"action": (70, 2), "img": (70, 8, 8, 3)},
        digest=content_digest(ReplayBuffer.copy_from_path(store, keys=["action"])),
    )


def assert_only(folder: pathlib.Path, *names: str) -> None:
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)


# ---- the whole way -------------------------------------------------------------------------------


def test_a_download_ends_with_the_verified_store_and_nothing_else(
    tmp_path, server, archive, published
):
    server.content = archive
    target = fetch(published, tmp_path / "data", server.url)
    assert target == tmp_path / "data" / STORE
    verify_content(target, published)
    assert_only(tmp_path / "data", "pusht")
    assert_only(tmp_path / "data" / "pusht", "pusht_cchi_v7_replay.zarr")


def test_what_is_there_already_is_verified_and_not_downloaded_again(
    tmp_path, server, archive, published
):
    server.content = archive
    fetch(published, tmp_path, server.url)
    fetch(published, tmp_path, server.url)
    assert len(server.requests) == 1


@pytest.mark.parametrize("checksums", [True, False], ids=["downloaded", "unpacked-by-hand"])
@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("data/img/1.0.0.0", "missing"),
        ("data/img/1.0.0.0", "empty"),
        ("data/img/1.0.0.0", "bit"),
        ("data/action/0.0", "missing"),
        ("data/action/0.0", "bit"),
        ("data/action/.zarray", "missing"),
        ("meta/episode_ends/0", "missing"),
        (".zgroup", "missing"),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    tmp_path, server, archive, published, file, how, checksums
):
    server.content = archive
    target = fetch(published, tmp_path, server.url)
    if not checksums:
        without_checksums(target)
    damage = {
        "missing": lambda path: path.unlink(),
        "empty": lambda path: path.write_bytes(b""),
        "bit": lambda path: flip_a_bit(path, at=-40),
    }
    damage[how](target / file)
    array, _, chunk = file.rpartition("/")
    if file == "data/img/1.0.0.0" and how == "bit" and not checksums:
        verify_content(target, published)  # nobody can tell
        return
    with pytest.raises(DataError) as raised:
        fetch(published, tmp_path, server.url)
    message = str(raised.value)
    if "not hold the numbers" not in message:
        assert array.rpartition("/")[2] in message
        assert chunk in message or chunk == "0"
    assert "get the data" in message or "download again" in message


def test_the_checksums_of_what_was_unpacked_are_noted(tmp_path, server, archive, published):
    server.content = archive
    target = fetch(published, tmp_path, server.url)
    checksums = Checksums.decode((target / CHECKSUMS).read_bytes())
    files = {name for name in tree(target) if name != CHECKSUMS}
    assert checksums.files.keys() == files
    assert checksums.episode_ends == [40, 70]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_continues_or_begins_again(
    tmp_path, server, archive, published, knows_ranges, monkeypatch
):
    monkeypatch.setattr(download_data, "BLOCK", 1000)
    server.content, server.knows_ranges, server.break_after = archive, knows_ranges, 5000
    with pytest.raises(DataError, match=r"connection broke.*after the 5000 bytes"):
        fetch(published, tmp_path, server.url)
    assert_only(tmp_path, "pusht.zip.partial")
    server.break_after = None
    fetch(published, tmp_path, server.url)
    assert server.requests == [None, "bytes=5000-"]


def test_a_downloader_that_is_killed_continues(tmp_path, server, archive, published):
    server.content, server.break_after = archive * 400, 7000  # the connection is held open
    hang = threading.Event()
    original = Handler.do_GET

    def slow(self):
        original(self)
        self.wfile.flush()
        hang.wait(20)

    Handler.do_GET = slow  # type: ignore[method-assign]
    code = "import sys; from diffusion_policy.scripts.download_data import *; "
    code += "import diffusion_policy.scripts.download_data as d; d.BLOCK = 1000; "
    code += "download(sys.argv[1], pathlib.Path(sys.argv[2]))"
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url, str(tmp_path / "pusht.zip")],
            stderr=subprocess.DEVNULL,
        )
        partial = tmp_path / "pusht.zip.partial"
        for _ in range(1000):
            if partial.exists() and partial.stat().st_size > 0:
                break
            hang.wait(0.02)
        process.kill()
        process.wait()
    finally:
        hang.set()
        Handler.do_GET = original  # type: ignore[method-assign]
    have = partial.stat().st_size
    assert 0 < have <= 7000
    server.content, server.break_after = archive, None
    fetch(published, tmp_path, server.url)
    assert server.requests[-1] == f"bytes={have}-"


def test_a_download_that_was_complete_but_not_renamed_is_taken(
    tmp_path, server, archive, published
):
    server.content = archive
    (tmp_path / "pusht.zip.partial").write_bytes(archive)
    fetch(published, tmp_path, server.url)
    assert server.requests == [f"bytes={len(archive)}-"]


def test_a_partial_file_longer_than_the_archive_is_thrown_away(
    tmp_path, server, archive, published
):
    server.content = archive
    (tmp_path / "pusht.zip.partial").write_bytes(bytes(len(archive) + 7))
    fetch(published, tmp_path, server.url)
    assert server.requests == [f"bytes={len(archive) + 7}-", None]


# ---- what can go wrong ---------------------------------------------------------------------------


def test_no_server_is_one_sentence(tmp_path, published, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(DataError, match="no connection to the server"):
        fetch(published, tmp_path)


def test_an_address_without_the_file_is_one_sentence(tmp_path, server, published):
    server.status = 404
    with pytest.raises(DataError, match="the server says 404 Not Found"):
        fetch(published, tmp_path, server.url)
    assert_only(tmp_path)


def test_a_right_checksum_passes_and_a_wrong_one_removes_the_archive(
    tmp_path, server, archive, published
):
    server.content = archive
    with pytest.raises(DataError, match=r"SHA-256 checksum .*, expected 00ff; it was removed"):
        fetch(published, tmp_path, server.url, sha256="00ff")
    assert_only(tmp_path)
    fetch(published, tmp_path, server.url, sha256=hashlib.sha256(archive).hexdigest().upper())


def test_an_archive_of_other_data_is_refused_and_removed(tmp_path, server, store, published):
    other = tmp_path / "other" / STORE
    shutil.copytree(store, other)
    buffer = ReplayBuffer.create_from_path(other, mode="r+")
    buffer["action"][3] = 0
    server.content = zip_of(other)
    with pytest.raises(DataError, match=f"{server.url} does not hold the numbers"):
        fetch(published, tmp_path / "data", server.url)
    buffer.drop_episode()
    server.content = zip_of(other)
    with pytest.raises(DataError, match=f"{server.url} holds 1 episodes"):
        fetch(published, tmp_path / "data", server.url)
    assert_only(tmp_path / "data")


def test_an_archive_without_the_store_is_refused_and_removed(tmp_path, server, published):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("readme.txt", "hello")
    server.content = stream.getvalue()
    with pytest.raises(DataError, match=f"does not hold {STORE}"):
        fetch(published, tmp_path, server.url)
    assert_only(tmp_path)


@pytest.mark.parametrize("damage", [lambda a: a[: len(a) // 2], lambda a: b"<html>no</html>"])
def test_what_is_no_zip_is_refused_and_removed(tmp_path, server, archive, published, damage):
    server.content = damage(archive)
    with pytest.raises(DataError, match="not a readable zip file"):
        fetch(published, tmp_path, server.url)
    assert_only(tmp_path)


def test_a_flipped_bit_inside_the_archive_is_noticed(tmp_path, server, archive, published):
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        offset = file.getinfo(f"{STORE}/data/img/0.0.0.0").header_offset + 300
    server.content = archive[:offset] + bytes([archive[offset] ^ 1]) + archive[offset + 1 :]
    with pytest.raises(DataError, match="Bad CRC"):
        fetch(published, tmp_path, server.url)
    assert_only(tmp_path)


def evil_member(kind: str) -> zipfile.ZipInfo:
    names = {
        "up": "pusht/../../evil",
        "root": "/evil",
        "drive": "C:/evil",
        "backslash": "..\\evil",
        "link": "pusht/link",
    }
    member = zipfile.ZipInfo(names[kind])
    member.filename = names[kind]
    if kind == "link":
        member.external_attr = 0o120777 << 16
    return member


@pytest.mark.parametrize("kind", ["up", "root", "drive", "backslash", "link"])
def test_an_archive_that_reaches_outside_of_the_folder_unpacks_nothing(tmp_path, kind):
    path, folder = tmp_path / "x.zip", tmp_path / "a" / "b"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("pusht/fine", "fine")
        file.writestr(evil_member(kind), "evil")
    with pytest.raises(DataError, match="outside of the data folder"):
        unzip(path, folder)
    assert_only(tmp_path, "x.zip")


class FullDisk(io.BytesIO):
    def write(self, _data):
        raise OSError(28, "No space left on device")


def test_a_full_disk_while_downloading_is_one_sentence(tmp_path, server, archive, monkeypatch):
    server.content = archive
    monkeypatch.setattr(download_data, "open", lambda *a: FullDisk(), raising=False)
    with pytest.raises(DataError, match=r"pusht.zip.partial could not be written \(No space left"):
        download(server.url, tmp_path / "pusht.zip")


def test_a_full_disk_while_unpacking_keeps_the_archive_for_the_next_attempt(
    tmp_path, server, archive, published, monkeypatch
):
    server.content = archive

    def full(*_args, **_kw):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", full)
        with pytest.raises(DataError, match=r"could not be unpacked in .*No space left"):
            fetch(published, tmp_path, server.url)
    assert_only(tmp_path, "pusht.zip")
    fetch(published, tmp_path, server.url)
    assert len(server.requests) == 1


# ---- command line --------------------------------------------------------------------------------


def test_the_command_line_says_what_it_got(tmp_path, server, archive, published, monkeypatch):
    server.content = archive
    monkeypatch.setitem(DATA, "pusht", published)
    arguments = ["pusht", "--output-dir", str(tmp_path), "--url", server.url]
    result = CliRunner().invoke(download_data.main, arguments)
    assert result.exit_code == 0
    assert f"{tmp_path / STORE} is complete" in result.output
    assert "2 episodes, 70 steps" in result.output
    again = CliRunner().invoke(download_data.main, arguments)
    assert "was there already" in again.output


def test_the_command_line_ends_with_one_sentence_and_a_non_zero_code(tmp_path, server):
    server.status = 500
    arguments = ["pusht", "--output-dir", str(tmp_path), "--url", server.url]
    result = CliRunner().invoke(download_data.main, arguments)
    assert result.exit_code == 1
    assert "error: http://127.0.0.1" in result.output
    assert isinstance(result.exception, SystemExit)


def test_the_digest_does_not_depend_on_how_the_data_are_stored(tmp_path, store):
    buffer = ReplayBuffer.copy_from_path(store)
    other = buffer.save_to_path(
        tmp_path / "x.zarr.zip", chunks={"action": (7, 2)}, compressors="disk"
    )
    assert content_digest(ReplayBuffer.copy_from_path(other)) == content_digest(buffer)
    buffer["action"][5, 1] += 1
    assert content_digest(ReplayBuffer.copy_from_path(other)) != content_digest(buffer)


def test_the_human_demonstrations_are_recognised(human_pusht_zarr):
    verify_content(human_pusht_zarr, DATA["pusht"])


@pytest.mark.parametrize("end", ["", ".", ".."])
def test_an_address_that_names_no_file_is_one_sentence(tmp_path, end):
    (tmp_path / "mine").write_text("stays")
    url = f"http://127.0.0.1:1/data/{end}"
    with pytest.raises(DataError, match="does not end in the name of a file"):
        fetch(DATA["pusht"], tmp_path, url)
    result = CliRunner().invoke(
        download_data.main, ["pusht", "--output-dir", str(tmp_path), "--url", url]
    )
    assert result.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
