"""Runs that differ in their seed only are one method; methods have names."""

import pathlib

import pytest

from diffusion_policy.report.groups import Member, group_differences, group_runs
from diffusion_policy.report.run_config import RunConfig
from diffusion_policy.report.run_data import Run
from diffusion_policy.report.run_log import Series
from diffusion_policy.report.sources import Place


def member(path: str, seed: int | None = 42, source: str | None = None, **settings) -> Member:
    """A run in a sweep, or, with ``source`` equal to ``path``, one that was named itself."""
    folder = pathlib.Path(path)
    place = Place(folder, folder.parent if source is None else pathlib.Path(source))
    config = RunConfig("", {"training.seed": seed, **settings}) if seed is not None else RunConfig()
    run = Run(folder, {}, {}, Series([], []), {0: 0}, None, [], {}, None, 0.0, config)
    return Member(place, run)


def waiting(path: str, seed: int | None = None) -> Member:
    folder = pathlib.Path(path)
    return Member(Place(folder, folder.parent, seed=seed))


def grouped(*members: Member) -> dict[str, list[str]]:
    return {g.label: [str(m.place.folder) for m in g.members] for g in group_runs(members)}


def test_a_sweep_is_a_group_with_the_name_of_its_folder():
    members = [
        member(f"/x/{s}/train_{i}", i, lr=lr) for s, lr in (("a", 1), ("b", 2)) for i in (1, 2)
    ]
    assert grouped(*members) == {
        "a": ["/x/a/train_1", "/x/a/train_2"],
        "b": ["/x/b/train_1", "/x/b/train_2"],
    }


def test_more_seeds_of_a_method_join_it_and_repeated_ones_do_not():
    first = [member("/x/a/train_0", 1), member("/x/a/train_1", 2)]
    assert list(grouped(*first, member("/x/b/train_0", 3))) == ["a + b"]
    assert grouped(*first, member("/x/b/train_0", 2)) == {
        "a": ["/x/a/train_0", "/x/a/train_1"],
        "b": ["/x/b/train_0"],
    }


def test_settings_name_the_groups_of_one_folder():
    members = [
        member(f"/x/sweep/{i}", seed, **{"optimizer.lr": lr, "dim": 3})
        for i, (lr, seed) in enumerate([(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)])
    ]
    assert grouped(*members) == {
        "lr=0.1": ["/x/sweep/0", "/x/sweep/1"],
        "lr=0.2": ["/x/sweep/2", "/x/sweep/3"],
    }
    other = member("/x/other/train_0", 1, **{"optimizer.lr": 0.3, "dim": 4})
    assert list(grouped(*members, other)) == ["sweep · lr=0.1", "sweep · lr=0.2", "other"]


def test_runs_that_are_named_themselves_have_the_names_of_their_folders_or_settings():
    def alone(path, seed, lr):
        return member(path, seed, source=path, lr=lr)

    assert list(grouped(alone("/x/one", 1, 0.1), alone("/x/two", 1, 0.2))) == ["one", "two"]
    runs = [alone("/x/one", 1, 0.1), alone("/x/two", 2, 0.1), alone("/x/three", 1, 0.2)]
    assert list(grouped(*runs)) == ["lr=0.1", "three"]


def test_too_many_differences_are_no_name():
    members = [member(f"/x/m/{i}", 1, a=i, b=i, c=i, d=i) for i in range(2)]
    assert list(grouped(*members)) == ["m/0", "m/1"]


def test_long_values_are_cut_in_a_name():
    members = [member(f"/x/m/{i}", 1, zarr=f"{i}" * 99) for i in range(2)]
    (label, _) = grouped(*members)
    assert label == "zarr=" + "0" * 23 + "…"


def test_names_are_unique():
    same = [member(f"/{parent}/sweep/train_0", 1, lr=lr) for lr, parent in enumerate("xy")]
    assert list(grouped(*same)) == ["x/sweep", "y/sweep"]
    numbered = [member(f"/{i}/x/sweep/train_0", 1, lr=i) for i in range(2)]
    assert list(grouped(*numbered)) == ["x/sweep (1)", "x/sweep (2)"]


def test_runs_that_have_not_begun_belong_to_their_sweep():
    members = [
        waiting("/x/a/train_0", 7),
        member("/x/a/train_1", 1, lr=1),
        waiting("/x/b/train_0"),
        member("/x/b/train_1", 1, lr=2),
    ]
    assert grouped(*members) == {
        "a": ["/x/a/train_0", "/x/a/train_1"],
        "b": ["/x/b/train_0", "/x/b/train_1"],
    }
    group = group_runs(members)[0]
    assert group.config.get("lr") == 1
    assert group.members[0].seed == 7


def test_runs_without_configurations_are_grouped_by_folder():
    members = [member(f"/x/{s}/train_{i}", None) for s in "ab" for i in range(2)]
    assert [len(runs) for runs in grouped(*members).values()] == [2, 2]
    assert group_differences(group_runs(members)) == []


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"problem": "broken"}, "unreadable"),
        ({"run": None}, "waiting"),
        ({}, "unknown"),
    ],
)
def test_states_without_a_sweep(changes, state):
    one = member("/x/a/train_0")
    for name, value in changes.items():
        setattr(one, name, value)
    assert one.state == state
