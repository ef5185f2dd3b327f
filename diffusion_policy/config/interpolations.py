"""What the interpolations of a configuration would do, found out without doing it.

``${x}`` is a copy of ``x``. Forty keys that each name the next one twice are a trillion copies, so
the size of the result is computed first. And a resolver (``${oc.env:HOME}``) reads what is none of
a foreign configuration's business.
"""

import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from diffusion_policy.common.errors import ConfigError

MAX_SIZE = 2_000_000  # values and characters; a large published configuration has 40,000

# Resolvers that compute with what they are given.
HARMLESS_RESOLVERS = ("eval", "now")

_KEY = re.compile(r"\$\{\s*([^{}:$]+?)\s*\}")  # ${a.b[0]}, ${..c}
_RESOLVER = re.compile(r"\$\{\s*([^{}:$\s]+)\s*:")  # ${now:%Y}
_COMPUTED = re.compile(r"\$\{[^{}:]*\$\{")  # ${a.${b}}, ${${r}:x}


def is_interpolated(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def check_growth(cfg: DictConfig | ListConfig) -> None:
    """Refuses a configuration that becomes huge when its interpolations are resolved.

    Raises:
        ConfigError: it does.
    """
    _Sizes(cfg).check()


def check_foreign(cfg: DictConfig, source: object) -> None:
    """Refuses interpolations that the configuration of a stranger has no use for.

    Raises:
        ConfigError: it names a resolver that could read something, or computes names.
    """
    for text in _strings(OmegaConf.to_container(cfg, resolve=False)):
        bad = [name for name in _RESOLVER.findall(text) if name not in HARMLESS_RESOLVERS]
        if bad or _COMPUTED.search(text):
            what = f"the resolver {bad[0]!r}" if bad else "a computed name"
            raise ConfigError(
                f"the configuration inside {source} uses {what} in {text[:80]!r}, which no "
                "published configuration needs; if you trust the file, pass --trust-checkpoint"
            )


def _strings(tree: Any) -> list[str]:
    """All values (keys are never interpolated) with an interpolation in them."""
    if isinstance(tree, dict):
        return [text for value in tree.values() for text in _strings(value)]
    if isinstance(tree, list):
        return [text for value in tree for text in _strings(value)]
    return [tree] if is_interpolated(tree) else []


class _Sizes:
    """How large each value of a configuration is with its interpolations written out."""

    def __init__(self, cfg: DictConfig | ListConfig):
        self._cfg = cfg
        self._tree = OmegaConf.to_container(cfg._get_root(), resolve=False)
        self._known: dict[tuple[str, ...], int] = {}

    def check(self) -> None:
        key = self._cfg._get_full_key(None)
        self._of(_parts(key), self._tree if not key else self._select(_parts(key)))

    def _of(self, path: tuple[str, ...], value: Any) -> int:
        if path not in self._known:
            self._known[path] = 1  # for a circle, which OmegaConf reports
            self._known[path] = size = self._measure(path, value)
            if size > MAX_SIZE:
                raise ConfigError(
                    f"config key {'.'.join(path)}: with its interpolations written out it is "
                    f"larger than {MAX_SIZE:,} values and characters; no configuration needs that"
                )
        return self._known[path]

    def _measure(self, path: tuple[str, ...], value: Any) -> int:
        if isinstance(value, dict):
            return 1 + sum(self._of((*path, str(key)), item) for key, item in value.items())
        if isinstance(value, list):
            return 1 + sum(self._of((*path, str(i)), item) for i, item in enumerate(value))
        if not is_interpolated(value):
            return 1 + (len(value) if isinstance(value, str | bytes) else 0)
        size = 1 + len(value)
        for name in _KEY.findall(value):
            target = self._resolve_name(path, name)
            size += self._of(target, self._select(target))
        return size

    def _resolve_name(self, path: tuple[str, ...], name: str) -> tuple[str, ...]:
        """``.x`` starts at the container of the value, ``..x`` one above, anything else at the
        root.
        """
        n_up = len(name) - len(name.lstrip("."))
        start = path[: max(len(path) - n_up, 0)] if n_up else ()
        return (*start, *_parts(name.lstrip(".")))

    def _select(self, path: tuple[str, ...]) -> Any:
        node = self._tree
        for part in path:
            if isinstance(node, dict):
                node = {str(key): item for key, item in node.items()}.get(part)
            elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            else:
                return None  # nothing there, or behind an interpolation
        return node


def _parts(key: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"[.\[\]]+", key) if part)
