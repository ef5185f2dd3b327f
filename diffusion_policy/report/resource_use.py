"""What runs cost: time and where it went, memory, machines."""

import html
from collections.abc import Sequence

from diffusion_policy.common.durations import describe_duration
from diffusion_policy.common.json_lines import as_count
from diffusion_policy.report.elements import (
    enumerate_words,
    group_style,
    key_label,
)
from diffusion_policy.report.groups import Group, Member
from diffusion_policy.report.run_data import Run
from diffusion_policy.report.run_log import Times
from diffusion_policy.report.shell import number_cell, section, table
from diffusion_policy.workspace.stopwatch import PARTS


def run_resources_section(run: Run) -> str:
    """One run: totals, and every part with its share."""
    facts = _facts(run)
    items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    content = f"<dl>{items}</dl>" if items else ""
    if run.times is not None:
        content += _stacked_bar(run.times, "wide") + _parts_table(run.times)
    return section("Resource use", content) if content else ""


def group_resources_section(groups: Sequence[Group]) -> str:
    """Several runs: one row each."""
    rows = [
        _row(member, member.run, group_style(number))
        for number, group in enumerate(groups)
        for member in group.members
        if member.run is not None
    ]
    runs = [run for group in groups for run in group.runs]
    if not any(run.info or run.times for run in runs):
        return ""
    parts = [part for run in runs if run.times for part in run.times.seconds]
    legend = "".join(
        key_label(_part_name(part), _part_style(part)) for part in sorted(set(parts), key=_order)
    )
    legend = f'<p class="legend">{legend}</p>' if legend else ""
    header = ["Run", "Time", "Sessions", "Per step", "Where the time went"]
    header += ["Peak memory", "Peak GPU memory"]
    return section("Resource use", legend + table(header, rows))


def machines_section(members: Sequence[Member]) -> str:
    """Every machine once, with the runs that it trained."""
    machines: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for member in members:
        machine = member.run.info.get("machine") if member.run is not None else None
        if isinstance(machine, dict) and machine:
            key = tuple((str(k), str(v)) for k, v in machine.items())
            machines.setdefault(key, []).append(member.place.name)
    lists = []
    for machine, names in machines.items():
        items = dict(machine)
        if len(members) > 1:
            items["runs"] = enumerate_words(names)
        rows = "".join(
            f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in items.items()
        )
        lists.append(f"<dl>{rows}</dl>")
    title = "Machine" if len(machines) == 1 else "Machines"
    return section(title, f'<div class="machines">{"".join(lists)}</div>') if lists else ""


def _facts(run: Run) -> dict[str, str]:
    host, device = _memory(run, "host"), _memory(run, "device")
    step = run.times.step_seconds if run.times is not None else None
    facts = {
        "time": None if run.seconds is None else describe_duration(run.seconds),
        "sessions": None if run.sessions is None else str(run.sessions),
        "per training step": None if step is None else _step_time(step),
        "peak memory": None if host is None else _gib(host),
        "peak GPU memory": None if device is None else _gib(device),
    }
    return {key: value for key, value in facts.items() if value is not None}


def _row(member: Member, run: Run, style: str) -> list[str]:
    step = run.times.step_seconds if run.times is not None else None
    return [
        key_label(member.place.name, style),
        number_cell(run.seconds, None if run.seconds is None else describe_duration(run.seconds)),
        number_cell(run.sessions, str(run.sessions)),
        number_cell(step, None if step is None else _step_time(step)),
        "–" if run.times is None else _stacked_bar(run.times),
        *(
            number_cell(n_bytes, None if n_bytes is None else _gib(n_bytes))
            for n_bytes in (_memory(run, "host"), _memory(run, "device"))
        ),
    ]


def _stacked_bar(times: Times, style: str = "") -> str:
    total = sum(times.seconds.values()) or 1.0
    pieces = "".join(
        f'<span class="{_part_style(part)}" style="width:{100 * times.seconds[part] / total:.2f}%"'
        f' title="{html.escape(_part_name(part))}: '
        f'{describe_duration(times.seconds[part])}"></span>'
        for part in sorted(times.seconds, key=_order)
    )
    return f'<span class="stack {style}">{pieces}</span>'


def _parts_table(times: Times) -> str:
    total = sum(times.seconds.values()) or 1.0
    rows = [
        [
            key_label(_part_name(part), _part_style(part)),
            number_cell(seconds, describe_duration(seconds)),
            number_cell(seconds / total, f"{100 * seconds / total:.1f} %"),
        ]
        for part, seconds in times.seconds.items()
    ]
    return table(["Part", "Time", "Share"], rows, style="narrow")


def _part_name(part: str) -> str:
    return PARTS.get(part, part)


def _order(part: str) -> tuple[int, str]:
    """Decides the color, too. Parts that others have measured share the last one."""
    return (list(PARTS).index(part) if part in PARTS else len(PARTS), part)


def _part_style(part: str) -> str:
    return f"c{_order(part)[0] + 1}"


def _memory(run: Run, what: str) -> int | None:
    memory = run.info.get("memory")
    return as_count(memory.get(f"{what}_peak_bytes")) if isinstance(memory, dict) else None


def _step_time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"
