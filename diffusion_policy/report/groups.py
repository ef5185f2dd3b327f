"""Runs that differ in their seed only, as groups: the methods and settings that are compared."""

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

from diffusion_policy.common.json_lines import as_count
from diffusion_policy.report.run_config import RunConfig, differing_keys, format_value
from diffusion_policy.report.run_data import Run
from diffusion_policy.report.sources import Place

MAX_KEYS_IN_LABEL = 3
MAX_VALUE_IN_LABEL = 24  # characters


@dataclass
class Member:
    """A run of a report: what is known of it, or why nothing is.

    Attributes:
        place: Where it lies.
        run: None while it has not logged anything.
        problem: The sentence that says why it cannot be read.
    """

    place: Place
    run: Run | None = None
    problem: str | None = None

    @property
    def seed(self) -> int | None:
        """Its seed; None if that is written nowhere."""
        if self.place.seed is not None or self.run is None:
            return self.place.seed
        return as_count(self.run.config.get("training.seed"))

    @property
    def state(self) -> str:
        """A word: what the sweep says, else what the log does."""
        if self.problem is not None:
            return "unreadable"
        if self.place.state is not None:
            return self.place.state
        if self.run is None:
            return "waiting"
        if self.run.n_epochs is None:
            return "unknown"
        return "in progress" if self.run.in_progress else "finished"


@dataclass
class Group:
    """Runs of one method: all settings but the seed are the same."""

    members: list[Member]
    label: str = ""

    @property
    def runs(self) -> list[Run]:
        """Those that have logged something."""
        return [member.run for member in self.members if member.run is not None]

    @property
    def config(self) -> RunConfig:
        """The settings that they share, as one of them has them; empty if none is known."""
        return next((run.config for run in self.runs if run.config.values), RunConfig())

    @property
    def notes(self) -> list[str]:
        """Sentences about what is left out of its runs."""
        return [note for run in self.runs for note in run.notes]

    @property
    def sources(self) -> list[pathlib.Path]:
        return list(dict.fromkeys(member.place.source for member in self.members))


def group_runs(members: Sequence[Member]) -> list[Group]:
    """Puts runs that differ in their seed only together, in the order of the runs, and names them.

    A seed stands once in a group: what repeats one, in a second sweep with the same configuration,
    is a group of its own, to be compared with the first. A run whose configuration is not known
    (yet) belongs to the others of its sweep.
    """
    groups: list[Group] = []
    for member in sorted(members, key=lambda m: m.run is None or not m.run.config.values):
        fitting = next((group for group in groups if _fits(member, group)), None)
        if fitting is None:
            groups.append(fitting := Group([]))
        fitting.members.append(member)
    order = {id(member): i for i, member in enumerate(members)}
    for group in groups:
        group.members.sort(key=lambda member: order[id(member)])
    groups.sort(key=lambda group: order[id(group.members[0])])
    for group in groups:
        group.label = _label(group, groups)
    _make_unique(groups)
    return groups


def group_differences(groups: Sequence[Group]) -> list[str]:
    """The settings in which the groups that have a configuration differ."""
    configs = [group.config for group in groups if group.config.values]
    return differing_keys(configs) if len(configs) > 1 else []


def _fits(member: Member, group: Group) -> bool:
    if member.seed is not None and member.seed in {other.seed for other in group.members}:
        return False
    if member.run is None or not member.run.config.values:
        return member.place.source in group.sources
    return bool(group.config.values) and not differing_keys([group.config, member.run.config])


def _label(group: Group, groups: Sequence[Group]) -> str:
    """The folder, where that says it all, else the settings in which a group differs."""
    siblings = [other for other in groups if set(other.sources) & set(group.sources)]
    folders = " + ".join(dict.fromkeys(source.resolve().name for source in group.sources))
    has_own_folders = len(siblings) == 1
    if has_own_folders and len(group.sources) == 1:
        return folders
    settings = _settings(group, groups if has_own_folders else siblings)
    if not settings:
        return group.members[0].place.name if len(group.members) == 1 else folders
    return (
        settings if has_own_folders or len(siblings) == len(groups) else f"{folders} · {settings}"
    )


def _settings(group: Group, others: Sequence[Group]) -> str:
    """Those in which groups differ; empty if they are too many to be a name, or not known."""
    keys = group_differences(others)
    if len(keys) > MAX_KEYS_IN_LABEL or not group.config.values:
        return ""
    return ", ".join(_setting(group.config, key) for key in keys)


def _setting(config: RunConfig, key: str) -> str:
    value = format_value(config, key)
    if len(value) > MAX_VALUE_IN_LABEL:
        value = value[: MAX_VALUE_IN_LABEL - 1] + "…"
    return f"{key.rsplit('.', 1)[-1]}={value}"


def _make_unique(groups: list[Group]) -> None:
    """By the folder above, and where that does not help, by a number."""
    for group in _repeated(groups):
        parents = [source.resolve().parent.name for source in group.sources]
        group.label = f"{parents[0]}/{group.label}"
    for label in {group.label for group in _repeated(groups)}:
        same = [group for group in groups if group.label == label]
        for number, group in enumerate(same, start=1):
            group.label = f"{label} ({number})"


def _repeated(groups: list[Group]) -> list[Group]:
    labels = [group.label for group in groups]
    return [group for group in groups if labels.count(group.label) > 1]
