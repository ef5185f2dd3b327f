"""The page about one training run."""

import html
from collections.abc import Iterable

from diffusion_policy.common.durations import describe_duration
from diffusion_policy.report.charts import Curve, draw_chart
from diffusion_policy.report.elements import (
    EMPTY,
    Links,
    bar,
    highlight_yaml,
    moment,
    notes_section,
    where,
)
from diffusion_policy.report.gallery import anchor, choose_videos, videos_section
from diffusion_policy.report.groups import Member
from diffusion_policy.report.page import Page
from diffusion_policy.report.resource_use import machines_section, run_resources_section
from diffusion_policy.report.run_data import Episode, Run
from diffusion_policy.report.score_table import run_score, run_scores_section
from diffusion_policy.report.scores import N_LAST
from diffusion_policy.report.shell import number_cell, section, table, tile


def run_page(member: Member, run: Run, title: str | None, links: Links, max_videos: int) -> Page:
    """The page.

    Args:
        member: The run, and where it lies.
        run: What it has logged.
        title: Heading. Default: the name of its folder.
        links: To files beside the page.
        max_videos: So many videos are embedded; further ones are linked.
    """
    embedded = choose_videos([run.evaluation], max_videos)[0]
    note = run.evaluation.origin if run.evaluation else ""
    return Page(
        title=title or member.place.name,
        subtitle=_subtitle(run),
        parts={
            "notes": notes_section(run.notes),
            "tiles": _tiles(run),
            "rollouts": videos_section([("", run.evaluation, embedded)], links, note),
            "curves": _curves(run),
            "episodes": _episodes(run, embedded, links),
            "scores": run_scores_section(run),
            "resources": run_resources_section(run),
            "checkpoints": _checkpoints(run, links),
            "machine": machines_section([member]),
            "reproduce": _reproduce(run),
            "config": _config(run),
        },
    )


def _subtitle(run: Run) -> str:
    parts = [run.config.get("name"), run.config.get("task.name")]
    if run.config.get("training.seed") is not None:
        parts.append(f"seed {run.config.get('training.seed')}")
    return " · ".join(str(part) for part in parts if part)


def _tiles(run: Run) -> str:
    tiles = list(_score_tiles(run))
    if "epoch" in run.last:
        note = f"{run.last_step + 1:,} steps"
        if run.n_epochs is not None:
            note = f"of {run.n_epochs:,} · {note}"
        tiles.append(tile("Epochs", f"{run.last['epoch'] + 1:,}", note))
    if run.seconds is not None:
        sessions = run.sessions or 1
        note = f"in {sessions} sessions" if sessions > 1 else "in one session"
        tiles.append(tile("Training time", describe_duration(run.seconds), note))
    losses = run.train_loss_means.values
    if losses:
        tiles.append(tile("Training loss", f"{losses[-1]:.4g}", "mean of the last full epoch"))
    return f'<section class="tiles">{"".join(tiles)}</section>'


def _score_tiles(run: Run) -> Iterable[str]:
    key, evaluation = run.score_key, run.evaluation
    if key is None or evaluation is None:
        return
    if key in evaluation.metrics:
        group = key.rsplit("/", 1)[0]
        n = sum(episode.group == group for episode in evaluation.episodes)
        note = f"{key} · {evaluation.origin}" + (f" · {n} episodes" if n else "")
        label = "Newest score" if run.in_progress else "Final score"
        yield tile(label, f"{evaluation.metrics[key]:.3f}", note, "accent")
    history = run.series.get(key, EMPTY)
    score = run_score(run, key)
    if score is not None:
        step = history.steps[history.values.index(score.best)]
        yield tile("Best score", f"{score.best:.3f}", f"{key} · {where(run, step)}")
        note = f"{key} · mean of {score.n_last} evaluations"
        yield tile(f"Last {N_LAST}", f"{score.last:.3f}", note)


def _curves(run: Run) -> str:
    def curve(label: str, style: str, key: str) -> Curve:
        return Curve(label, style, run.series.get(key, EMPTY))

    # What a run is judged by is drawn last, hence on top.
    scores = sorted(run.score_keys, key=lambda key: key.startswith("test/"))
    charts = {
        "Score": [curve(key, "c1" if key.startswith("test/") else "c2", key) for key in scores],
        "Loss": [
            curve("training, per batch", "faint", "train_loss"),
            curve("validation", "c2", "val_loss"),
            Curve("training, epoch mean", "c1", run.train_loss_means),
        ],
        "Action error on a training batch": [
            curve("mean squared error", "c1", "train_action_mse_error")
        ],
        "Learning rate": [curve("lr", "c1", "lr")],
    }
    drawn = "".join(
        draw_chart(title, curves, run.last_step, unit_interval=title == "Score")
        for title, curves in charts.items()
    )
    return section("Curves", f'<div class="charts">{drawn}</div>', note="over training steps")


def _episodes(run: Run, embedded: list[Episode], links: Links) -> str:
    evaluation = run.evaluation
    if evaluation is None:
        return ""
    metrics = "".join(
        f"<span><i>{html.escape(k)}</i> {v:.4g}</span>" for k, v in evaluation.metrics.items()
    )
    rows = [_episode_row(episode, embedded, links) for episode in evaluation.episodes]
    episodes = table(["Set", "Seed", "Max reward", "Video"], rows) if rows else ""
    return section(
        "Episodes", f'<p class="metrics">{metrics}</p>{episodes}', note=evaluation.origin
    )


def _episode_row(episode: Episode, embedded: list[Episode], links: Links) -> list[str]:
    score = '<td data-value="-1">–</td>'
    if episode.score is not None:
        score = number_cell(episode.score, f"{bar(episode.score)}{episode.score:.3f}")
    video = ""
    if episode in embedded:
        video = f'<a href="#{anchor(episode)}" data-play="{anchor(episode)}">play</a>'
    elif episode.video is not None:
        video = links(episode.video.path, "file")
    return [html.escape(episode.group), str(episode.seed), score, video]


def _checkpoints(run: Run, links: Links) -> str:
    rows = []
    for path in run.checkpoints:
        try:
            stat = path.stat()
        except OSError:  # displaced meanwhile, or a link that leads nowhere
            continue
        size = number_cell(stat.st_size, f"{stat.st_size / 1e6:,.1f} MB")
        rows.append([links(path, path.name), size, moment(stat.st_mtime)])
    return section("Checkpoints", table(["File", "Size", "Written"], rows)) if rows else ""


def _reproduce(run: Run) -> str:
    if run.command is None:
        return ""
    return section("Reproduce", f'<pre class="command">{html.escape(run.command)}</pre>')


def _config(run: Run) -> str:
    if run.config.text is None:
        return ""
    n_lines = run.config.text.count("\n")
    return section(
        "Configuration",
        f"<details><summary>.hydra/config.yaml, {n_lines} lines</summary>"
        f"<pre>{highlight_yaml(run.config.text)}</pre></details>",
    )
