"""Windows over episodes: the numbers of the specification, and a brute-force reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_policy.common import sampler as sampler_module
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.common.sampler import (
    SequenceSampler,
    create_indices,
    downsample_mask,
    get_val_mask,
)


def make_buffer(lengths, backend="numpy") -> ReplayBuffer:
    """``obs`` and ``action`` f32, ``img`` u8: every value tells its step, beginning with 1."""
    create = {
        "numpy": ReplayBuffer.create_empty_numpy,
        "zarr": ReplayBuffer.create_empty_zarr,
    }[backend]
    buffer, start = create(), 1
    for length in lengths:
        step = np.arange(start, start + length)
        buffer.add_episode(
            {
                "obs": np.stack([step, -step], axis=-1).astype(np.float32),
                "action": step.astype(np.float64)[:, None],
                "img": np.broadcast_to(step[:, None, None], (length, 2, 3)).astype(np.uint8),
            }
        )
        start += length
    return buffer


# ---- indices -------------------------------------------------------------------------------------


def test_windows_of_the_specification():
    indices = create_indices(np.array([5, 8, 20]), 4, np.ones(3, bool), 1, 2)
    head = ["0314", "0404", "1504", "2503", "3502"]
    expected = [[int(c) for c in row] for row in head]
    expected += [[5, 8, 1, 4], [5, 8, 0, 3], [6, 8, 0, 2], [8, 11, 1, 4], [8, 12, 0, 4]]
    assert indices[:10].tolist() == expected
    assert indices[-3:].tolist() == [[16, 20, 0, 4], [17, 20, 0, 3], [18, 20, 0, 2]]
    assert indices.shape == (20, 4)
    assert indices.dtype == np.int64
    assert create_indices(np.array([3, 13]), 8, np.ones(2, bool), 1, 2).tolist() == [
        [3, 10, 1, 8],
        [3, 11, 0, 8],
        [4, 12, 0, 8],
        [5, 13, 0, 8],
        [6, 13, 0, 7],
        [7, 13, 0, 6],
    ]


@pytest.mark.parametrize(
    ("ends", "mask"), [([3, 6], [True, True]), ([30, 60], [False, False]), ([], [])]
)
def test_where_no_window_fits_there_are_none(ends, mask):
    indices = create_indices(np.array(ends, np.int64), 10, np.array(mask, bool), 1, 1)
    assert indices.shape == (0, 4)
    assert indices.dtype == np.int64


@pytest.mark.parametrize(("length", "mask"), [(0, [True]), (-3, [True]), (3, [True, True])])
def test_impossible_settings_are_refused(length, mask):
    with pytest.raises(ConfigError):
        create_indices(np.array([5]), length, np.array(mask))


def windows_one_by_one(ends, S, mask, pad_before, pad_after):
    """The definition: every start k, every step."""
    pad_before, pad_after = (min(max(p, 0), S - 1) for p in (pad_before, pad_after))
    start = 0
    for end, used in zip(ends, mask, strict=True):
        for k in range(-pad_before, (end - start) - S + pad_after + 1) if used else ():
            steps = [start + k + i for i in range(S)]
            inside = [i for i, step in enumerate(steps) if start <= step < end]
            yield (
                [steps[inside[0]], steps[inside[-1]] + 1, inside[0], inside[-1] + 1],
                [min(max(step, start), end - 1) for step in steps],
            )
        start = end


settings_of_windows = {
    "lengths": st.lists(st.integers(1, 12), min_size=1, max_size=6),
    "S": st.integers(1, 10),
    "pad_before": st.integers(-1, 12),
    "pad_after": st.integers(-1, 12),
    "seed": st.integers(0, 1000),
}


@settings(max_examples=150, deadline=None)
@given(**settings_of_windows)
def test_indices_equal_the_definition(lengths, S, pad_before, pad_after, seed):
    mask = np.random.default_rng(seed).random(len(lengths)) < 0.7
    ends = np.cumsum(lengths)
    got = create_indices(ends, S, mask, pad_before, pad_after)
    expected = [row for row, _ in windows_one_by_one(ends, S, mask, pad_before, pad_after)]
    assert got.tolist() == expected


# ---- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "ratio", "seed", "expected"),
    [
        (206, 0.02, 42, [18, 90, 134, 157]),
        (200, 0.02, 42, [17, 87, 130, 153]),
        (300, 0.02, 42, [26, 129, 130, 194, 229, 257]),
        (566, 0.02, 42, [48, 49, 53, 113, 242, 245, 297, 365, 392, 431, 481]),
        (10, 0.5, 0, [2, 3, 4, 5, 7]),
        (3, 0.9, 0, [1, 2]),
        (1, 0.5, 0, []),
        (50, 0.0, 0, []),
    ],
)
def test_validation_episodes_are_those_of_the_published_splits(n, ratio, seed, expected):
    assert np.flatnonzero(get_val_mask(n, ratio, seed)).tolist() == expected


def test_the_published_training_set_of_90_episodes():
    mask = downsample_mask(~get_val_mask(206, 0.02, 42), 90, seed=42)
    kept = np.flatnonzero(mask).tolist()
    assert len(kept) == 90
    assert kept[:12] == [7, 9, 10, 11, 13, 16, 20, 25, 26, 27, 32, 33]
    assert kept[-4:] == [195, 198, 200, 203]


def test_a_mask_with_few_enough_episodes_is_unchanged():
    mask = np.array([True, False, True])
    assert downsample_mask(mask, None).tolist() == mask.tolist()
    assert downsample_mask(mask, 2).tolist() == mask.tolist()


# ---- windows -------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(**settings_of_windows, k=st.integers(0, 6), backend=st.sampled_from(["numpy", "zarr"]))
def test_windows_equal_the_definition_one_by_one_and_in_batches(
    lengths, S, pad_before, pad_after, seed, k, backend
):
    buffer = make_buffer(lengths, backend)
    mask = np.random.default_rng(seed).random(len(lengths)) < 0.7
    first_k = {"obs": k, "img": k}
    sampler = SequenceSampler(
        buffer, S, pad_before, pad_after, key_first_k=first_k, episode_mask=mask
    )
    rows = [r for _, r in windows_one_by_one(np.cumsum(lengths), S, mask, pad_before, pad_after)]
    assert len(sampler) == len(rows)
    if not rows:
        return
    chosen = np.random.default_rng(seed).integers(0, len(rows), size=7)
    batch = sampler.sample_sequences(chosen)
    for b, i in enumerate(chosen):
        one = sampler.sample_sequence(i)
        steps = np.array(rows[i])
        needed = steps - steps.min() < k
        np.testing.assert_array_equal(one["action"][:, 0], steps + 1)
        np.testing.assert_array_equal(one["obs"][:, 0], np.where(needed, steps + 1, np.nan))
        np.testing.assert_array_equal(one["img"][:, 1, 2], np.where(needed, steps + 1, 0))
        for key, value in one.items():
            assert value.dtype == batch[key].dtype == buffer[key].dtype
            np.testing.assert_array_equal(batch[key][b], value)


def test_no_more_than_the_first_k_steps_are_loaded(monkeypatch):
    class Watched:
        shape, dtype, loaded = (20, 3), np.dtype(np.float32), []

        def __getitem__(self, item):
            steps = np.arange(20)[item]
            self.loaded.extend(np.ravel(steps).tolist())
            return np.zeros((*np.shape(steps), 3), np.float32)

    buffer = make_buffer([20])
    buffer.data["frames"] = Watched()
    sampler = SequenceSampler(buffer, 8, 3, keys=["frames"], key_first_k={"frames": 2})
    monkeypatch.setattr(sampler_module, "_take", lambda array, rows: array[rows])
    sampler.sample_sequence(10)
    assert Watched.loaded == [7, 8]
    Watched.loaded.clear()
    sampler.sample_sequences([10, 0])
    assert sorted(set(Watched.loaded)) == [0, 1, 7, 8]


def test_a_single_window_is_a_view_and_a_batch_never_is():
    buffer = make_buffer([20])
    sampler = SequenceSampler(buffer, 4, 1)
    assert np.shares_memory(sampler.sample_sequence(5)["obs"], buffer["obs"])
    assert not np.shares_memory(sampler.sample_sequences([5])["obs"], buffer["obs"])
    assert not np.shares_memory(sampler.sample_sequence(0)["obs"], buffer["obs"])  # padded


def test_keys_select_what_is_read_and_an_index_too_far_is_an_index_error():
    sampler = SequenceSampler(make_buffer([20]), 4, keys=("action",))
    assert sampler.keys == ["action"]
    assert sampler.sample_sequence(0).keys() == sampler.sample_sequences([0]).keys() == {"action"}
    for read in (sampler.sample_sequence, lambda i: sampler.sample_sequences([i])):
        with pytest.raises(IndexError):
            read(len(sampler))


def test_a_mask_of_nothing_gives_an_empty_sampler():
    sampler = SequenceSampler(make_buffer([20]), 4, episode_mask=np.zeros(1, bool))
    assert len(sampler) == 0
    assert sampler.indices.shape == (0, 4)


# ---- the original's numbers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(golden):
    return torch.load(golden / "b_sampler.pt", weights_only=True)


def test_indices_equal_those_of_the_original(recorded):
    for case in recorded["create_indices"]:
        got = create_indices(
            case["episode_ends"].numpy(),
            case["sequence_length"],
            case["episode_mask"].numpy(),
            case["pad_before"],
            case["pad_after"],
        )
        # the original raised where no window fits
        expected = case["indices"].numpy() if case.get("indices") is not None else np.zeros((0, 4))
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, expected)


def test_masks_equal_those_of_the_original(recorded):
    for case in recorded["masks"]:
        val_mask = get_val_mask(case["n_episodes"], case["val_ratio"], case["seed"])
        np.testing.assert_array_equal(val_mask, case["val_mask"].numpy())
        kept = downsample_mask(~val_mask, case["max_n"], case["seed"])
        np.testing.assert_array_equal(kept, case["downsampled"].numpy())


@pytest.mark.parametrize("backend", ["numpy", "zarr"])
def test_samples_equal_those_of_the_original(recorded, backend):
    for case in recorded["sequence_sampler"]:
        data = {k: v.numpy() for k, v in case["data"].items()}
        root = {"data": data, "meta": {"episode_ends": case["episode_ends"].numpy()}}
        buffer = ReplayBuffer(root)
        if backend == "zarr":
            episodes = [buffer.get_episode(i) for i in range(buffer.n_episodes)]
            buffer = ReplayBuffer.create_empty_zarr()
            for episode in episodes:
                buffer.add_episode(episode)
        sampler = SequenceSampler(
            buffer,
            case["sequence_length"],
            case["pad_before"],
            case["pad_after"],
            keys=case["keys"],
            key_first_k=case["key_first_k"],
            episode_mask=case["episode_mask"].numpy(),
        )
        np.testing.assert_array_equal(sampler.indices, case["indices"].numpy())
        batch = sampler.sample_sequences(case["sample_ids"])
        for b, (idx, expected) in enumerate(zip(case["sample_ids"], case["samples"], strict=True)):
            got = sampler.sample_sequence(idx)
            assert got.keys() == expected.keys()
            for key, value in expected.items():
                assert got[key].dtype == value.numpy().dtype
                np.testing.assert_array_equal(got[key], value.numpy())
                np.testing.assert_array_equal(batch[key][b], value.numpy())
