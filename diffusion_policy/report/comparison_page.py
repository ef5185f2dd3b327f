"""The page about several runs: methods or settings compared, each over its seeds."""

import html
from collections.abc import Callable, Sequence

from diffusion_policy.common.durations import describe_duration
from diffusion_policy.report.bands import Band, average
from diffusion_policy.report.charts import Curve, draw_chart
from diffusion_policy.report.elements import (
    EMPTY,
    Links,
    bar,
    count,
    enumerate_words,
    group_style,
    highlight_yaml,
    key_label,
    moment,
    notes_section,
    state_label,
)
from diffusion_policy.report.gallery import choose_videos, videos_section
from diffusion_policy.report.groups import Group, Member, group_differences
from diffusion_policy.report.page import Page
from diffusion_policy.report.resource_use import group_resources_section, machines_section
from diffusion_policy.report.run_config import format_value
from diffusion_policy.report.run_data import Evaluation, Run
from diffusion_policy.report.run_log import Series
from diffusion_policy.report.score_table import (
    group_scores_section,
    group_spreads,
    run_score,
    score_keys,
)
from diffusion_policy.report.scores import N_LAST
from diffusion_policy.report.shell import number_cell, section, table, tile

MAX_VALUE = 40  # characters of a setting in the table of differences


def comparison_page(
    groups: Sequence[Group], title: str | None, links: Links, max_videos: int
) -> Page:
    """The page.

    Args:
        groups: What is compared.
        title: Heading. Default: the names of the groups.
        links: To files beside the page.
        max_videos: So many videos are embedded; further ones are linked.
    """
    members = [member for group in groups for member in group.members]
    return Page(
        title=title or enumerate_words([group.label for group in groups], limit=4),
        subtitle=_subtitle(groups),
        parts={
            "notes": notes_section([note for group in groups for note in group.notes]),
            "tiles": _tiles(groups),
            "scores": group_scores_section(groups),
            "curves": _curves(groups),
            "rollouts": _rollouts(groups, links, max_videos),
            "runs": _runs(groups),
            "differences": _differences(groups),
            "resources": group_resources_section(groups),
            "machines": machines_section(members),
            "reproduce": _reproduce(groups),
            "configs": _configs(groups),
        },
    )


def _subtitle(groups: Sequence[Group]) -> str:
    """What all of them have in common."""
    configs = [run.config for group in groups for run in group.runs]
    shared = []
    for key in ("name", "task.name"):
        values = {str(config.get(key, "")) for config in configs}
        shared += values if len(values) == 1 else []
    n_runs = sum(len(group.members) for group in groups)
    words = [*filter(None, shared), count(len(groups), "method"), count(n_runs, "run")]
    return " · ".join(words)


def _tiles(groups: Sequence[Group]) -> str:
    members = [member for group in groups for member in group.members]
    runs = [member.run for member in members if member.run is not None]
    n_finished = sum(member.state == "finished" for member in members)
    others: dict[str, int] = {}
    for member in members:
        if member.state != "finished":
            others[member.state] = others.get(member.state, 0) + 1
    note = ", ".join(f"{n} {state}" for state, n in others.items()) or "all of them"
    tiles = [*_best_tiles(groups, score_keys(runs))]
    tiles.append(tile("Runs finished", f"{n_finished} of {len(members)}", note))
    seconds = [run.seconds for run in runs if run.seconds is not None]
    if seconds:
        tiles.append(
            tile(
                "Training time", describe_duration(sum(seconds)), f"of {count(len(seconds), 'run')}"
            )
        )
    return f'<section class="tiles">{"".join(tiles)}</section>'


def _best_tiles(groups: Sequence[Group], keys: Sequence[str]) -> list[str]:
    """The best group by the first score, once by its best checkpoints, once by the last ones."""
    tiles = []
    for column, what in ((0, "max"), (1, f"last {N_LAST}")) if keys else ():
        spreads = [(group_spreads(group, keys[0])[column], group) for group in groups]
        known = [(spread, group) for spread, group in spreads if spread is not None]
        if known:
            spread, group = max(known, key=lambda pair: pair[0].mean)
            label = f"Best method, {what}" if len(groups) > 1 else f"Score, {what}"
            note = f"{keys[0]} · {group.label} · {count(spread.n, 'seed')}"
            tiles.append(tile(label, f"{spread.mean:.3f}", note, "accent" if column == 0 else ""))
    return tiles


def _curves(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    if not runs:
        return ""
    last_step = max(run.last_step for run in runs)
    charts: dict[str, Callable[[Run], Series]] = {
        key: lambda run, key=key: run.series.get(key, EMPTY) for key in score_keys(runs)
    }
    unit_interval = set(charts)
    charts |= {
        "Training loss, epoch mean": lambda run: run.train_loss_means,
        "Validation loss": lambda run: run.series.get("val_loss", EMPTY),
        "Action error on a training batch": lambda run: run.series.get(
            "train_action_mse_error", EMPTY
        ),
        "Learning rate": lambda run: run.series.get("lr", EMPTY),
    }
    drawn, has_bands, has_partial = "", False, False
    for title, series_of in charts.items():
        curves = [_curve(group, i, series_of) for i, group in enumerate(groups)]
        bands = [curve.series for curve in curves if isinstance(curve.series, Band)]
        has_bands |= bool(bands)
        has_partial |= any(not band.is_whole.all() for band in bands)
        # In reverse: the first group is drawn last, hence on top.
        drawn += draw_chart(
            title, curves[::-1], last_step, unit_interval=title in unit_interval, has_legend=False
        )
    note = "over training steps"
    if has_bands:
        note += " · line: mean over seeds, band: smallest to largest seed"
    if has_partial:
        note += " · dashed: not all seeds are that far"
    legend = "".join(
        key_label(f"{group.label} ({count(len(group.runs), 'seed')})", group_style(i))
        for i, group in enumerate(groups)
        if group.runs
    )
    legend = f'<p class="legend">{legend}</p>'
    return section("Curves", f'{legend}<div class="charts">{drawn}</div>', note=note)


def _curve(group: Group, number: int, series_of: Callable[[Run], Series]) -> Curve:
    seeds = [series_of(run) for run in group.runs]
    return Curve(group.label, group_style(number), average(seeds))


def _rollouts(groups: Sequence[Group], links: Links, max_videos: int) -> str:
    """Of every group its best seed: the newest evaluation of that one."""
    best = [_best_seed(group) for group in groups]
    evaluations: list[Evaluation | None] = [
        member.run.evaluation if member and member.run else None for member in best
    ]
    chosen = choose_videos(evaluations, max_videos)
    rows = []
    for number, (group, member, evaluation, videos) in enumerate(
        zip(groups, best, evaluations, chosen, strict=True)
    ):
        heading = key_label(group.label, group_style(number))
        if member is not None and evaluation is not None:
            seed = "" if member.seed is None else f"seed {member.seed}, "
            heading += f' <small class="muted">{html.escape(seed + evaluation.origin)}</small>'
        rows.append((heading, evaluation, videos))
    return videos_section(rows, links, note="newest evaluation of the best seed")


def _best_seed(group: Group) -> Member | None:
    """The run with videos that has the best mean of its last evaluations."""

    def rank(member: Member) -> float:
        assert member.run is not None
        key = member.run.score_key
        score = run_score(member.run, key) if key is not None else None
        return -float("inf") if score is None else score.last

    candidates = [
        member
        for member in group.members
        if member.run and member.run.evaluation
        if any(episode.video for episode in member.run.evaluation.episodes)
    ]
    return max(candidates, key=rank, default=None)


def _runs(groups: Sequence[Group]) -> str:
    rows = [
        [
            key_label(group.label, group_style(number)),
            _name(member),
            str(member.seed) if member.seed is not None else "–",
            f'<td class="wrap">{state_label(member)}</td>',
            *_progress_cells(member.run),
        ]
        for number, group in enumerate(groups)
        for member in group.members
    ]
    header = ["Method", "Run", "Seed", "State", "Epochs", "Newest score", "Newest record"]
    return section("Runs", table(header, rows))


def _name(member: Member) -> str:
    path = html.escape(str(member.place.folder))
    return f'<td class="wrap" title="{path}">{html.escape(member.place.name)}</td>'


def _progress_cells(run: Run | None) -> list[str]:
    if run is None:
        return [number_cell(None)] * 2 + ["–"]
    n = run.last.get("epoch", -1) + 1
    epochs = f"{bar(n / run.n_epochs)}{n:,} of {run.n_epochs:,}" if run.n_epochs else f"{n:,}"
    key = run.score_key
    values = run.series.get(key, EMPTY).values if key else []
    return [
        number_cell(n, epochs),
        number_cell(values[-1], note=key or "") if values else number_cell(None),
        moment(run.written),
    ]


def _differences(groups: Sequence[Group]) -> str:
    known = [(i, group) for i, group in enumerate(groups) if group.config.values]
    if len(known) < 2:
        return ""
    keys = group_differences(groups)
    if not keys:
        return section("Differences", '<p class="muted">The configurations are the same.</p>')
    rows = [
        [f"<td><code>{html.escape(key)}</code></td>", *(_value(group, key) for _, group in known)]
        for key in keys
    ]
    header = ["Setting", *(group.label for _, group in known)]
    note = "settings in which the configurations differ; seeds, names, folders and devices left out"
    return section("Differences", table(header, rows), note=note)


def _value(group: Group, key: str) -> str:
    text = format_value(group.config, key)
    if len(text) <= MAX_VALUE:
        return f"<td>{html.escape(text)}</td>"
    short = text[: MAX_VALUE - 1] + "…"
    return f'<td title="{html.escape(text)}">{html.escape(short)}</td>'


def _reproduce(groups: Sequence[Group]) -> str:
    commands = [
        f"# {group.label}: {member.place.name}\n{member.run.command}"
        for group in groups
        for member in group.members
        if member.run is not None and member.run.command is not None
    ]
    if not commands:
        return ""
    text = html.escape("\n\n".join(commands))
    return section(
        "Reproduce",
        f"<details><summary>{count(len(commands), 'command')}</summary>"
        f'<pre class="command">{text}</pre></details>',
    )


def _configs(groups: Sequence[Group]) -> str:
    details = "".join(
        f"<details><summary>{html.escape(group.label)}</summary>"
        f"<pre>{highlight_yaml(group.config.text)}</pre></details>"
        for group in groups
        if group.config.text is not None
    )
    note = "of each method, with one of its seeds"
    return section("Configuration", details, note=note) if details else ""
