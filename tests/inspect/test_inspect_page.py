"""The page and the command line: what they say, and what they embed."""

import base64
import json
import re

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from diffusion_policy.common.errors import ConfigError, DiffusionPolicyError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.inspect.__main__ import main
from diffusion_policy.inspect.page import build_page, player_data
from diffusion_policy.inspect.pictures import encode, to_uint8
from diffusion_policy.inspect.summary import summarize
from diffusion_policy.report.shell import resource


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def embedded(page):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*)</script>', page)[1]
    )


def decode(content):
    return cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)


def test_a_sound_data_set_ends_with_exit_code_0(make_data_set):
    result = run(make_data_set())
    assert result.exit_code == 0
    assert "5 episodes, 56 steps" in result.output
    assert result.output.endswith("Result: no damage, no warning\n")


def test_warnings_leave_the_exit_code_alone(make_data_set):
    def change(arrays):
        arrays["action"][:, 1] = 0

    result = run(make_data_set(change=change))
    assert result.exit_code == 0
    assert "WARNING  'action' is constant" in result.output
    assert result.output.endswith("Result: no damage, 1 warning\n")


def test_damage_ends_with_exit_code_1_also_when_it_was_repaired(make_data_set, tmp_path):
    path = make_data_set()
    (path / "data/img/7.0.0.0").write_bytes(b"")
    result = run(path)
    assert result.exit_code == 1
    assert "DAMAGE   'img': chunk 7.0.0.0 is damaged" in result.output
    result = run(path, "--repair", tmp_path / "new.zarr.zip")
    assert result.exit_code == 1
    kept = "kept 3 episodes, 33 steps\n  lost 2 episodes, 23 steps: episodes 2-3\n"
    assert kept in result.output
    assert run(tmp_path / "new.zarr.zip").exit_code == 0


def test_what_cannot_be_read_at_all_is_one_sentence(tmp_path):
    result = run(tmp_path / "nowhere.zarr")
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {tmp_path}/nowhere.zarr does not exist")
    assert result.output.count("\n") == 1


def test_data_sets_of_packages_are_found():
    result = run("package://diffusion_policy/assets/pusht_demos.zarr.zip")
    assert result.exit_code == 0, result.output
    assert "559 episodes, 53367 steps" in result.output


@pytest.mark.parametrize("wanted", ["x", "3-1", "1,,2", ""])
def test_a_list_of_episodes_must_be_one(make_data_set, wanted):
    result = run(make_data_set(), "--episodes", wanted)
    assert result.exit_code == 2
    assert "is no list of episodes such as 0,5,10-19" in result.output


def test_episodes_without_a_page_are_a_mistake(make_data_set):
    result = run(make_data_set(), "--episodes", "1")
    assert result.exit_code == 2
    assert "name the page with -o" in result.output


def test_the_command_line_writes_the_page_with_the_episodes_asked_for(make_data_set, tmp_path):
    output = tmp_path / "page.html"
    result = run(make_data_set(), "-o", output, "--episodes", "3,0-1", "--max-frames", 4)
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"Page: {output}\n")
    episodes = embedded(output.read_text())["episodes"]
    assert [e["index"] for e in episodes] == [3, 0, 1]
    assert [len(e["pictures"]["img"]["steps"]) for e in episodes] == [4, 4, 4]


def test_values_and_pictures_are_those_of_the_episode(make_data_set):
    path = make_data_set()
    buffer = ReplayBuffer.copy_from_path(path)
    data = player_data(summarize(path), [2, 4], max_frames=5)
    assert [key["name"] for key in data["keys"]] == ["action", "joints", "pos"]
    episode = data["episodes"][0]
    assert (episode["index"], episode["length"], episode["stride"]) == (2, 8, 1)
    expected = buffer["joints"][22:30].reshape(8, 6).T
    np.testing.assert_allclose(episode["values"]["joints"], expected, atol=1e-4)
    pictures = episode["pictures"]["img"]
    assert pictures["steps"][0] == 0
    assert pictures["steps"][-1] == 7
    assert len(pictures["steps"]) == 5
    for step, content in zip(pictures["steps"], pictures["jpeg"], strict=True):
        image = decode(content)
        assert image.shape == (16, 20, 3)
        assert abs(int(image.mean()) - 4 * (22 + step)) <= 2


def test_scale_and_offset_in_the_page_map_into_the_range_of_a_policy(make_data_set):
    data = player_data(summarize(make_data_set()), [0], max_frames=1)
    for key in data["keys"]:
        low, high = np.array(key["dimRanges"]).T
        scale, offset = np.array(key["scale"]), np.array(key["offset"])
        np.testing.assert_allclose(low * scale + offset, -1, atol=1e-3)
        np.testing.assert_allclose(high * scale + offset, 1, atol=1e-3)


def test_what_is_not_readable_is_missing_in_the_page_and_nothing_else(make_data_set, tmp_path):
    path = make_data_set()
    (path / "data/img/1.0.0.0").unlink()
    (path / "data/pos/1.0").unlink()
    summary = summarize(path)
    episode = player_data(summary, [0], max_frames=10)["episodes"][0]
    assert episode["pictures"]["img"]["steps"] == [0, 1, 2, 3, 8, 9]
    assert [v is None for v in episode["values"]["pos"][0]] == [4 <= i < 8 for i in range(10)]
    page = build_page(summary, tmp_path / "page.html").read_text()
    assert page.count('<li class="damage">') == 2
    assert 'data-episode="0" data-step="4"' in page


def test_long_episodes_are_thinned_out(tmp_path):
    buffer = ReplayBuffer.create_empty_numpy()
    buffer.add_episode({"pos": np.arange(4500.0)})
    path = buffer.save_to_path(tmp_path / "x.zarr")
    episode = player_data(summarize(path), [0], 1)["episodes"][0]
    assert episode["stride"] == 3
    assert episode["values"]["pos"][0] == [float(f"{v:.5g}") for v in range(0, 4500, 3)]


def test_an_episode_that_is_not_there_is_refused(make_data_set, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no episode 5 to show; .* holds 5, counted"):
        build_page(summarize(make_data_set()), tmp_path / "page.html", [0, 5])


@pytest.mark.parametrize(("name", "page"), [("set.zarr.zip", ""), ("set.zarr", "page.html")])
def test_a_page_never_replaces_or_enters_the_data_set(make_data_set, contents, name, page):
    path = make_data_set(name)
    before = contents(path)
    result = run(path, "-o", path / page if page else path)
    assert result.exit_code == 1
    assert "put the page elsewhere" in result.output
    assert contents(path) == before


def test_a_page_that_cannot_be_written_is_one_sentence(make_data_set, tmp_path):
    with pytest.raises(DiffusionPolicyError, match=r"Cannot write .*nowhere/page\.html"):
        build_page(summarize(make_data_set()), tmp_path / "nowhere" / "page.html")


def test_the_page_of_a_data_set_without_episodes_has_no_player(tmp_path):
    ReplayBuffer.create_from_path(tmp_path / "new.zarr", mode="w")
    page = build_page(summarize(tmp_path / "new.zarr"), tmp_path / "page.html").read_text()
    assert "there is no episode yet" in page
    assert 'id="player"' not in page


def test_the_page_asks_the_network_for_nothing(make_data_set, tmp_path):
    page = build_page(summarize(make_data_set()), tmp_path / "page.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "default-src 'none'" in page
    for name in ("inspect.css", "inspect.js", "player.html"):
        text = resource("diffusion_policy.inspect", name).replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(", text)


@pytest.mark.parametrize(
    ("values", "maximum", "expected"),
    [
        (np.array([0, 128, 255], np.uint8), 255, [0, 128, 255]),
        (np.array([0, 128, 255], np.float32), 255, [0, 128, 255]),
        (np.array([0, 0.5, 1], np.float64), 1, [0, 128, 255]),
        (np.array([0, 1000, 2000], np.uint16), 2000, [0, 128, 255]),
        (np.array([-3, np.nan, 300], np.float32), 255, [0, 0, 255]),
    ],
)
def test_pictures_of_any_type_become_bytes(values, maximum, expected):
    np.testing.assert_allclose(to_uint8(values, maximum), expected, atol=1)


def test_red_stays_red_and_views_lie_side_by_side():
    frame = np.zeros((2, 300, 400, 4), np.uint8)
    frame[0, ..., 0] = 255
    frame[1, ..., 2] = 255
    image = cv2.imdecode(np.frombuffer(encode(frame, 255), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (192, 512, 3)
    np.testing.assert_allclose(image[90, 100], [0, 0, 255], atol=3)  # BGR
    np.testing.assert_allclose(image[90, 400], [255, 0, 0], atol=3)
    grey = encode(np.full((16, 16, 1), 77, np.uint8), 255)
    assert abs(cv2.imdecode(np.frombuffer(grey, np.uint8), cv2.IMREAD_GRAYSCALE).mean() - 77) < 2
