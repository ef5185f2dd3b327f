"""References are followed within the configuration, and reach nothing beyond it."""

import os
import time

import pytest
from omegaconf import OmegaConf

from diffusion_policy.config.resolvers import register_resolvers
from diffusion_policy.report import references
from diffusion_policy.report.references import References, UnresolvedError

SECRET = "hunter2"


def resolve(tree, *path):
    return References(tree).resolve(path or ("x",))


TREE = {
    "n": 3,
    "task": {"name": "pusht", "shape": [1, "${n}"], "copy": "${..n}", "own": "${.name}"},
    "alias": "${task}",
}


@pytest.mark.parametrize(
    "formula",
    [
        *("${n}", "a${n}b${task.name}", "${task}", "${task.shape}", "${task.shape[1]}"),
        *("${task.shape.1}", "${alias.name}", "${alias.shape[1]}", "${.n}", "${task['name']}"),
        *("${eval:'${n}*2+1'}", "${eval:${n}}", "${eval:'[1,${n}]'}", "${eval:\"'a'\"}"),
        *("${oc.select:nowhere,5}", "${oc.select:n,5}", "${oc.select:task.name}", "\\${n}"),
        *(
            "${oc.select:nowhere}",
            "${task.copy}",
            "${task.own}",
            "\\\\${n}",
            "${ n }",
            "${eval:1.5}",
        ),
    ],
)
def test_it_means_what_it_means_to_omegaconf(formula):
    register_resolvers()
    tree = {**TREE, "x": formula}
    try:
        expected = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)["x"]  # type: ignore
    except Exception:
        with pytest.raises(UnresolvedError):
            resolve(tree)
    else:
        assert resolve(tree) == expected


@pytest.fixture
def secret(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", SECRET)
    OmegaConf.register_new_resolver("theirs", lambda *_: SECRET, replace=True)
    yield
    OmegaConf.clear_resolver("theirs")


PRIVATE = [
    *(
        "${oc.env:SECRET}",
        "${oc.env:SECRET,x}",
        "${ oc.env:SECRET}",
        "${oc.decode:${oc.env:SECRET}}",
    ),
    *("${oc.${e}:SECRET}", "${${o}.env:SECRET}", "${oc.decode:'${oc.env:SECRET}'}", "${theirs:}"),
    *("${hydra:runtime.cwd}", "${now:%Y}", "${oc.create:${oc.env:SECRET}}", "${theirs:1}"),
    *("${eval:'\"${oc.env:SECRET}\"'}", "${oc.select:y,${oc.env:SECRET}}", "${python_version:}"),
    *("${oc.deprecated:y}", "${oc.dict.keys:z}", "${oc.dict.values:z}", "${${oc.env:SECRET}}"),
    *("${oc.select:${oc.env:SECRET}}", "${y[${oc.env:SECRET}]}", "${eval:${y}}", "a${y}b"),
]


@pytest.mark.parametrize("formula", PRIVATE)
def test_nothing_reads_the_environment(secret, formula):
    tree = {"x": formula, "e": "env", "o": "oc", "y": "${oc.env:SECRET}", "z": {"a": "${y}"}}
    tree |= {"name": "${x}", "section": {"b": "${x}"}, "all": "${section}", "list": ["${x}"]}
    for key in ("x", "name", "section", "all", "list", "y", "z"):
        with pytest.raises(UnresolvedError):
            resolve(tree, key)


def test_a_text_that_looks_like_a_reference_when_it_is_resolved_stays_one(secret):
    tree = {"x": "${eval:\"'$' + '{oc.env:SECRET}'\"}", "y": "${x}", "z": "\\${oc.env:SECRET}"}
    tree |= {"w": "${z}", "v": "${u.a}", "u": "${t}", "t": {"a": "\\${oc.env:SECRET}"}}
    for key in "xyzwv":
        assert resolve(tree, key) == "${oc.env:SECRET}"


def doubling(n, part):
    return {"x0": "a" * 10} | {f"x{i}": part(f"${{x{i - 1}}}") for i in range(1, n)}


@pytest.mark.parametrize(
    "tree",
    [
        doubling(60, lambda below: below * 2),
        doubling(60, lambda below: [below] * 2),
        doubling(60, lambda below: {"a": below, "b": below}),
        doubling(60, lambda below: f"${{eval:'[{below},{below}]'}}"),
        doubling(5000, lambda below: below),
        doubling(5000, lambda below: {"a": below}),
        {"x0": "${x1}", "x1": "${x0}", "x2": "${x2}", "x3": {"a": "${x3}"}, "x4": ["${.}"]},
        {f"x{i}": "${" * 100 for i in range(1000)},
        {f"x{i}": "${eval:" + "(" * 300 + ")" * 100 for i in range(1000)},
        {f"x{i}": "a.${b}" * 80 for i in range(5000)},
        {"x0": "${" + "." * 10_000 + "}", "x1": "$" * 10**6 + "${x0}"},
        {"x0": dict.fromkeys(map(str, range(4000)), 1)}
        | {f"x{i}": "${x0}" for i in range(1, 4000)},
    ],
)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_few_lines_that_stand_for_a_billion_values_end_at_once(tree, is_reversed):
    known = References(tree)
    n_values = 0
    start = time.monotonic()
    for key in reversed(list(tree)) if is_reversed else tree:
        try:
            value = known.resolve((key,))
        except UnresolvedError:
            continue
        n_values += count(value)
    assert n_values <= references.MAX_VALUES
    assert time.monotonic() - start < 60  # hours otherwise


def count(value):
    if not isinstance(value, dict | list):
        return 1
    return sum(map(count, value.values() if isinstance(value, dict) else value))


def test_the_environment_is_nowhere_in_the_names_of_keys(secret):
    assert SECRET in os.environ["SECRET"]
    with pytest.raises(UnresolvedError):
        resolve({"a": {"b": 1}, "x": "${a.${oc.env:SECRET}}"})
