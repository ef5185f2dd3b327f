"""Rollouts that play in the page: which ones, and their HTML."""

import base64
import html
import itertools
import re
from collections.abc import Sequence

from diffusion_policy.report.elements import Links
from diffusion_policy.report.run_data import Episode, Evaluation
from diffusion_policy.report.shell import section
from diffusion_policy.report.videos import MAX_VIDEO_BYTES


def choose_videos(evaluations: Sequence[Evaluation | None], max_videos: int) -> list[list[Episode]]:
    """The episodes whose videos go into the page, for each evaluation its first ones.

    The evaluations take turns until the limits of number and size are reached.
    """
    queues = [
        [episode for episode in (evaluation.episodes if evaluation else ()) if episode.video]
        for evaluation in evaluations
    ]
    chosen: list[list[Episode]] = [[] for _ in queues]
    n_bytes = n_videos = 0
    for turn in itertools.zip_longest(*queues):
        for mine, episode in zip(chosen, turn, strict=True):
            if episode is None or episode.video is None or n_videos == max_videos:
                continue
            n_bytes += episode.video.size
            if n_bytes > MAX_VIDEO_BYTES:
                return chosen
            mine.append(episode)
            n_videos += 1
    return chosen


def videos_section(
    evaluations: Sequence[tuple[str, Evaluation | None, list[Episode]]], links: Links, note: str
) -> str:
    """The section of the rollouts; nothing if no video was chosen.

    Args:
        evaluations: Of each: a heading in HTML, which may be empty, the evaluation, and which
            episodes of it :func:`choose_videos` chose.
        links: To the videos that were not.
        note: Beside the heading of the section.
    """
    parts = [
        _gallery(heading, evaluation, chosen, links, number)
        for number, (heading, evaluation, chosen) in enumerate(evaluations)
        if evaluation is not None and chosen
    ]
    if not parts:
        return ""
    button = '<button type="button" id="play-all" hidden>Pause all</button>'
    return section("Rollouts", "".join(parts), note=note, extra=button)


def anchor(episode: Episode, number: int = 0) -> str:
    """The id of an episode's video in the page; ``number``: of its evaluation."""
    name = re.sub(r"\W", "-", f"{episode.group}-{episode.seed}")
    return f"rollout-{number}-{name}"


def _gallery(
    heading: str, evaluation: Evaluation, chosen: list[Episode], links: Links, number: int
) -> str:
    cards = "".join(_card(episode, number) for episode in chosen)
    rest = [e for e in evaluation.episodes if e.video and e not in chosen]
    more = ", ".join(links(e.video.path, f"{e.group} {e.seed}") for e in rest if e.video)
    return (
        (f"<h3>{heading}</h3>" if heading else "")
        + f'<div class="gallery">{cards}</div>'
        + (f'<p class="muted">Further videos beside this page: {more}</p>' if more else "")
    )


def _card(episode: Episode, number: int) -> str:
    assert episode.video is not None
    content = base64.b64encode(episode.video.read()).decode()
    score = "" if episode.score is None else f"<b>{episode.score:.3f}</b>"
    name = f"{html.escape(episode.group)} {episode.seed}"
    return (
        f'<figure id="{anchor(episode, number)}"><video controls muted loop playsinline'
        f' preload="auto" aria-label="rollout {name}"'
        f' src="data:video/mp4;base64,{content}"></video>'
        f"<figcaption>{name}{score}</figcaption></figure>"
    )
