"""Which classes a configuration may name: the one place that decides, asked when they are built.

``_target_: os.system`` in somebody's configuration would run code as surely as a malicious pickle.
So a name is allowed only if

* it is on the list of :mod:`.allowed_targets`, name by name; or
* the user named it, or a package that holds it, with ``--allow`` on the command line; or
* the configuration is the user's own (``train.py``), and so is the code: found neither in Python's
  standard library nor among installed packages, but in the working directory, on ``PYTHONPATH``, or
  in a checkout installed with ``pip install -e``. The configuration of a checkpoint never gets
  this: the user did not write it.

``--trust-config`` (``train.py``) and ``--trust-checkpoint`` (``eval.py``) lift all of it.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import os
import pathlib
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.config.allowed_targets import ALLOWED_TARGETS

PACKAGE = "diffusion_policy"
# What lies beside this package in its repository, and so on the path of its scripts, is not the
# user's own code: of it, too, only what is listed may be named.
OURS = {
    *(PACKAGE, "benchmarks", "demo_pusht", "demo_real_robot", "eval", "eval_real_robot"),
    *("multirun_metrics", "ray_exec", "ray_train_multirun", "setup", "tests", "train"),
}
TARGET = "_target_"

# How a command line tells the processes that it starts.
_VARIABLE = "DIFFUSION_POLICY_TARGETS"
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class TargetPolicy:
    """What a configuration may name beside :data:`ALLOWED_TARGETS`.

    Attributes:
        names: classes, modules or packages that the user vouches for.
        own_code: whether the user's own modules are allowed without being named.
        everything: whether any name is.
        option: the option of the command line that lifts the restriction, for messages.
    """

    names: tuple[str, ...] = ()
    own_code: bool = True
    everything: bool = False
    option: str = "--trust-config"

    def allows(self, target: str) -> bool:
        if self.everything or target in ALLOWED_TARGETS:
            return True
        if any(target == name or target.startswith(name + ".") for name in self.names):
            return True
        return self.own_code and _is_own_code(target.partition(".")[0])

    @property
    def words(self) -> list[str]:
        """The options of ``train.py`` that make this policy."""
        everything = [self.option] if self.everything else []
        return [*everything, *(f"--allow={name}" for name in self.names)]


#: Of a checkpoint, or of any other file that came from somewhere.
FOREIGN = TargetPolicy(own_code=False, option="--trust-checkpoint")

_current: ContextVar[TargetPolicy | None] = ContextVar("targets", default=None)


def current_policy() -> TargetPolicy:
    """The policy that holds here: that of :func:`targets_allowed_by`, or else of the user's own
    configurations, as the command line has it.
    """
    policy = _current.get()
    if policy is not None:
        return policy
    given = json.loads(os.environ.get(_VARIABLE, "{}"))
    return TargetPolicy(tuple(given.get("names", ())), everything=given.get("everything", False))


def allow_targets(names: Sequence[str], everything: bool) -> None:
    """What the user allows on the command line, for this process and those that it starts.

    Raises:
        ConfigError: as :func:`check_names`.
    """
    check_names(names)
    if names or everything:
        os.environ[_VARIABLE] = json.dumps({"names": list(names), "everything": everything})


def check_names(names: Sequence[str]) -> None:
    """Checks the values of ``--allow``.

    Raises:
        ConfigError: one is not the name of anything.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"--allow={name}: give the name of a class, a module or a package, as in "
                "--allow=my_package.my_module"
            )


@contextlib.contextmanager
def targets_allowed_by(policy: TargetPolicy) -> Iterator[None]:
    """Within this, ``policy`` decides what may be built."""
    token = _current.set(policy)
    try:
        yield
    finally:
        _current.reset(token)


def with_targets_of(policy: TargetPolicy, config: Any) -> TargetPolicy:
    """``policy``, and what a plain tree of the user's overrides names."""
    return replace(policy, names=(*policy.names, *(name for _, name in _targets(config))))


def check_targets(tree: Any, source: str = "the configuration") -> None:
    """Refuses a plain tree (dicts, lists, scalars) that names what it may not.

    Raises:
        ConfigError: says the first such name, and where it stands.
    """
    policy = current_policy()
    for path, target in _targets(tree):
        if not isinstance(target, str) or not policy.allows(target):
            raise ConfigError(_refusal(source, path, target, policy))


def locate(target: str, where: str = "_target_") -> Any:
    """The class or function of this name.

    Args:
        where: the key that names it, for messages.

    Raises:
        ConfigError: it may not be named, or is not there.
    """
    policy = current_policy()
    if not isinstance(target, str) or not policy.allows(target):
        raise ConfigError(_refusal("the configuration", where, target, policy))
    import hydra.utils

    try:
        return hydra.utils.get_object(target)
    except Exception as error:  # whatever a module raises while it is imported
        reason = " ".join(str(error).split())
        raise ConfigError(f"{where} names {target}, which cannot be imported: {reason}") from error


def _refusal(source: str, path: str, target: Any, policy: TargetPolicy) -> str:
    where = f"{source} names {target!r} (at {path or 'the top'}), which is not "
    package = str(target).partition(".")[0]
    word = f"{policy.option} if you know who wrote it and let it run any code on this machine"
    if package == PACKAGE:
        return (
            f"{where}a class of this project that configurations may name; check the spelling, add "
            f"it to config/allowed_targets.py if it is yours, or repeat with {word}"
        )
    own = "your own code or " if policy.own_code else ""
    use = f"--allow={package} if you want to use that package, or with "
    use = "" if package in sys.stdlib_module_names else use  # it would be everything, unsaid
    return f"{where}{own}on the list of what configurations may build; repeat with {use}{word}"


def _targets(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key path, name) of every ``_target_`` in a plain tree."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == TARGET:
                yield path, value
            yield from _targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from _targets(value, f"{path}[{i}]")


@functools.cache
def _is_own_code(package: str) -> bool:
    """Whether a top-level module lies outside of Python and of what is installed into it."""
    if package in OURS or package in sys.stdlib_module_names or not package:
        return False
    try:
        spec = importlib.util.find_spec(package)  # looks for it, and does not import it
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    places = [spec.origin] if spec.has_location else [*(spec.submodule_search_locations or ())]
    return bool(places) and not any(_is_installed(place) for place in places if place)


def _is_installed(place: str) -> bool:
    path = pathlib.Path(place).resolve()
    return any(path.is_relative_to(folder) for folder in _folders_of_python())


@functools.cache
def _folders_of_python() -> tuple[pathlib.Path, ...]:
    folders = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({pathlib.Path(folder).resolve() for folder in folders if folder})
