import subprocess
import sys

import pytest
from omegaconf import OmegaConf

import diffusion_policy.config  # noqa: F401  registers the resolver
from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.resolvers import resolve, safe_eval

PUSHT = {
    "n_action_steps": 8,
    "n_latency_steps": 1,
    "n_obs_steps": 2,
    "obs_dim": 20,
    "action_dim": 2,
    "obs_as_cond": True,
    "obs_as_local_cond": False,
    "obs_as_global_cond": True,
    "task": {"obs_dim": 20, "action_dim": 2, "dataset_type": "ph"},
}

INPUT_DIM = (
    "${eval: ${task.action_dim} if ${obs_as_local_cond} or ${obs_as_global_cond}"
    " else ${task.obs_dim} + ${task.action_dim}}"
)
GLOBAL_COND_DIM = "${eval: ${task.obs_dim}*${n_obs_steps} if ${obs_as_global_cond} else None}"
MAX_STEPS = '${eval:\'500 if "${task.dataset_type}" == "mh" else 400\'}'

# Every expression of the shipped and published configurations, with the value it must have.
SHIPPED = [
    ("${eval:'${n_action_steps}+${n_latency_steps}'}", {}, 9),
    ("${eval:'${n_action_steps}-1'}", {}, 7),
    ("${eval:'${n_obs_steps}-1'}", {}, 1),
    ("${eval:'${n_obs_steps}-1+${n_latency_steps}'}", {}, 2),
    (INPUT_DIM, {}, 2),
    (INPUT_DIM, {"obs_as_global_cond": False}, 22),
    (INPUT_DIM, {"obs_as_global_cond": False, "obs_as_local_cond": True}, 2),
    ("${eval: ${task.obs_dim} if ${obs_as_local_cond} else None}", {}, None),
    (
        "${eval: ${task.obs_dim} if ${obs_as_local_cond} else None}",
        {"obs_as_local_cond": True},
        20,
    ),
    (GLOBAL_COND_DIM, {}, 40),
    (GLOBAL_COND_DIM, {"obs_as_global_cond": False}, None),
    ("${eval:'${action_dim} if ${obs_as_cond} else ${obs_dim} + ${action_dim}'}", {}, 2),
    (
        "${eval:'${action_dim} if ${obs_as_cond} else ${obs_dim} + ${action_dim}'}",
        {"obs_as_cond": False},
        22,
    ),
    ("${eval:'${obs_dim} if ${obs_as_cond} else 0'}", {}, 20),
    ("${eval:'${obs_dim} if ${obs_as_cond} else 0'}", {"obs_as_cond": False}, 0),
    ("${eval: ${task.obs_dim} + ${task.action_dim}}", {}, 22),
    (MAX_STEPS, {}, 400),
    (MAX_STEPS, {"task.dataset_type": "mh"}, 500),
]


@pytest.mark.parametrize(("text", "changes", "expected"), SHIPPED)
def test_every_expression_of_the_shipped_configs_gives_its_value_and_type(text, changes, expected):
    cfg = OmegaConf.create({**PUSHT, "value": text})
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
    resolve(cfg)
    assert cfg.value == expected
    assert type(cfg.value) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${eval:${n_obs_steps}}", 2),
        ("${eval: 3}", 3),
        ("${eval: true}", True),
        ("${eval: 2.5}", 2.5),
        ("${eval:'5'}", 5),
    ],
)
def test_an_argument_that_is_a_value_already_stays_that_value(text, expected):
    value = OmegaConf.create({**PUSHT, "value": text}).value
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "1+2*3-4",
            "7//2",
            "7/2",
            "7%4",
            "2**10",
            "2**-1",
            "-3",
            "+3",
            "not 0",
            "1e-3",
            "(1+2)*3",
        ),
        *("1<2<3", "1<2>5", "1==1.0", "1!=2", "3>=3", "2<=1", "2 in (1, 2)", "'a' not in ['b']"),
        *("True and 0", "False or 'x'", "1 and 2 and 3", "0 or None or []", "None is None"),
        *(
            "1 if None is not None else 2",
            "'ph' == \"mh\"",
            "1 if 2 > 1 else 0",
            "[1, (2, 'x'), {'a': None}]",
        ),
        *("'a' + 'b'", "True + 1", "0 and 1/0"),
    ],
)
def test_safe_eval_agrees_with_python(expression):
    expected = eval(expression)
    value = safe_eval(expression)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("expression", "offender"),
    [
        ("__import__('os').system('touch /nowhere/x')", "Call"),
        ("open('x')", "Call"),
        ("(1).__class__", "Attribute"),
        ("().__class__.__bases__[0]", "Subscript"),
        ("horizon + 1", "`horizon` (Name)"),
        ("[x for x in (1, 2)]", "ListComp"),
        ("(lambda: 1)()", "Call"),
        ("lambda: 1", "Lambda"),
        ("f'{1}'", "JoinedStr"),
        ("(a := 1)", "NamedExpr"),
        ("{**{}}", "Dict"),
        ("[*[1]]", "Starred"),
        ("~1", "UnaryOp"),
        ("1 << 1000000000", "BinOp"),
        ("1 | 2", "BinOp"),
        ("b'x'", "Constant"),
        ("1j", "Constant"),
        ("...", "Constant"),
    ],
)
def test_everything_but_arithmetic_is_refused_by_name(expression, offender):
    with pytest.raises(ConfigError) as error:
        safe_eval(expression)
    assert offender in str(error.value)
    assert repr(expression) in str(error.value)


@pytest.mark.parametrize(
    "expression",
    [
        *(
            "9**9**9",
            "2**100000",
            "9**999999999999",
            "10**300*10**300",
            "2**1000*2**1000",
            "1e308**9",
        ),
        *("'a'*10**9", "[0]*10**9", "'%1000000000d' % 1", "(-8)**0.5"),
        *("(" * 300 + "1" + ")" * 300, "1" * 5000, "not " * 240 + "1" + "+" * 9000),
        *("1/0", "1 %", "", "1 2", "'a' < 1", "1 +\x00 2", "return 1", "1; 2", "{[]: 1}"),
    ],
)
def test_what_cannot_be_computed_cheaply_is_one_sentence(expression):
    with pytest.raises(ConfigError, match="expression") as error:
        safe_eval(expression)
    assert "\n" not in str(error.value)


def test_a_refused_expression_in_a_config_names_its_key():
    cfg = OmegaConf.create({"training": {"seed": "${eval:'open(1)'}"}})
    with pytest.raises(ConfigError, match=r"config key training\.seed: .*`open\(1\)` \(Call\)"):
        resolve(cfg)


def test_a_dangling_reference_in_a_config_names_its_key():
    with pytest.raises(ConfigError, match=r"config key a.b: .*'nowhere' not found"):
        resolve(OmegaConf.create({"a": {"b": "${nowhere}"}}))


def test_an_unquoted_comma_says_to_use_quotes():
    with pytest.raises(ConfigError, match="quotes"):
        resolve(OmegaConf.create({"a": "${eval:1,2}"}))


def test_importing_the_config_package_is_light_and_registers_the_resolver():
    code = (
        "import sys, diffusion_policy.config; from omegaconf import OmegaConf;"
        "assert OmegaConf.has_resolver('eval');"
        "print([m for m in ('torch', 'hydra', 'numpy', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("value", ["\\${x}", {"b": ["a", "\\${x}"]}, "${eval:\"'$' + '{x}'\"}"])
def test_a_text_that_would_be_a_reference_the_next_time_is_one_sentence(value):
    with pytest.raises(ConfigError, match=r"'\$\{x\}' after its interpolations"):
        resolve(OmegaConf.create({"a": value, "x": 1}))
