"""One self-contained HTML page about a training run: no request leaves it, videos included."""

import base64
import datetime
import html
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterable

from diffusion_policy.report.charts import Curve, draw_chart
from diffusion_policy.report.run_data import SCORE_KEY, Episode, Evaluation, Run, Series, load_run
from diffusion_policy.report.shell import render_page, resource, section, tile, write_page

MAX_VIDEO_BYTES = 32 * 2**20  # embedded in one page; browsers and mail programs stay usable

EMPTY = Series([], [])


def build_report(
    run_dir: str | os.PathLike,
    output_path: str | os.PathLike,
    title: str | None = None,
    evaluation_dir: str | os.PathLike | None = None,
    max_videos: int = 12,
) -> pathlib.Path:
    """Writes the report of a run, finished or in progress.

    Args:
        run_dir: Output folder of ``train.py``.
        output_path: The page to write; replaced if it exists.
        title: Heading of the page. Default: the name of the run's folder.
        evaluation_dir: Output folder of ``eval.py`` to show instead of the newest evaluation that
            the training itself made.
        max_videos: So many videos are embedded; further ones are linked.

    Returns:
        ``output_path`` as a path.

    Raises:
        DataError: If the folder has no log with at least one record, or a file in it is damaged.
        DiffusionPolicyError: If the page cannot be written.
    """
    run = load_run(run_dir, evaluation_dir)
    output = pathlib.Path(output_path)
    write_page(output, Page(run, output, title or run.folder.resolve().name, max_videos).render())
    return output


class Page:
    """The sections of the page, top to bottom."""

    def __init__(self, run: Run, output: pathlib.Path, title: str, max_videos: int):
        self.run = run
        self.output = output
        self.title = title
        self.embedded = _embeddable(run.evaluation, max_videos)

    def render(self) -> str:
        parts = [
            self.tiles(),
            self.rollouts(),
            self.curves(),
            self.scores(),
            self.checkpoints(),
            self.machine(),
            self.reproduce(),
            self.config(),
        ]
        return render_page(
            title=self.title,
            subtitle=self.subtitle(),
            body="\n".join(part for part in parts if part),
            js=resource("diffusion_policy.report", "report.js"),
            module="diffusion_policy.report",
        )

    def subtitle(self) -> str:
        config = self.run.config
        parts = [config.get("name"), config.get("task.name")]
        if "training.seed" in config:
            parts.append(f"seed {config['training.seed']}")
        return " · ".join(str(part) for part in parts if part)

    def tiles(self) -> str:
        last, config = self.run.last, self.run.config
        tiles = list(self._score_tiles())
        if "epoch" in last:
            n_epochs = config.get("training.num_epochs")
            note = f"{self.run.last_step + 1:,} steps"
            tiles.append(
                tile("Epochs", f"{last['epoch'] + 1:,}", f"of {n_epochs:,} · {note}")
                if isinstance(n_epochs, int)
                else tile("Epochs", f"{last['epoch'] + 1:,}", note)
            )
        if "seconds" in self.run.info:
            sessions = self.run.info.get("sessions", 1)
            note = f"in {sessions} sessions" if sessions > 1 else "in one session"
            tiles.append(tile("Training time", _duration(self.run.info["seconds"]), note))
        losses = self.run.train_loss_means.values
        if losses:
            tiles.append(tile("Training loss", f"{losses[-1]:.4g}", "mean of the last full epoch"))
        return f'<section class="tiles">{"".join(tiles)}</section>'

    def _score_tiles(self) -> Iterable[str]:
        key, evaluation = self.run.score_key, self.run.evaluation
        if key is None or evaluation is None:
            return
        if key in evaluation.metrics:
            group = key.rsplit("/", 1)[0]
            n = sum(episode.group == group for episode in evaluation.episodes)
            note = f"{key} · {evaluation.origin}" + (f" · {n} episodes" if n else "")
            label = "Newest score" if self.run.in_progress else "Final score"
            yield tile(label, f"{evaluation.metrics[key]:.3f}", note, "accent")
        history = self.run.series.get(key, EMPTY)
        if history.values:
            best = max(range(len(history.values)), key=history.values.__getitem__)
            step = history.steps[best]
            where = (
                f"epoch {self.run.epochs[step]}" if step in self.run.epochs else f"step {step:,}"
            )
            note = f"{key} · {where}"
            yield tile("Best score", f"{history.values[best]:.3f}", note)

    def rollouts(self) -> str:
        if not self.embedded:
            return ""
        assert self.run.evaluation is not None
        cards = "".join(map(_video_card, self.embedded))
        linked = [e for e in self.run.evaluation.episodes if e.video and e not in self.embedded]
        more = ", ".join(
            _link(e.video, f"{e.group} {e.seed}", self.output) for e in linked if e.video
        )
        return section(
            "Rollouts",
            f'<div class="gallery">{cards}</div>'
            + (f'<p class="muted">Further videos beside this page: {more}</p>' if more else ""),
            note=self.run.evaluation.origin,
            extra='<button type="button" id="play-all" hidden>Pause all</button>',
        )

    def curves(self) -> str:
        def curve(label: str, style: str, key: str) -> Curve:
            return Curve(label, style, self.run.series.get(key, EMPTY))

        scores = [key for key in self.run.series if SCORE_KEY.fullmatch(key)]
        scores.sort(key=lambda key: key.startswith("test/"))  # drawn last, hence on top
        charts = {
            "Score": [curve(key, "c1" if key.startswith("test/") else "c2", key) for key in scores],
            "Loss": [
                curve("training, per batch", "faint", "train_loss"),
                curve("validation", "c2", "val_loss"),
                Curve("training, epoch mean", "c1", self.run.train_loss_means),
            ],
            "Action error on a training batch": [
                curve("mean squared error", "c1", "train_action_mse_error")
            ],
            "Learning rate": [curve("lr", "c1", "lr")],
        }
        drawn = "".join(
            draw_chart(title, curves, self.run.last_step, unit_interval=title == "Score")
            for title, curves in charts.items()
        )
        return section("Curves", f'<div class="charts">{drawn}</div>', note="over training steps")

    def scores(self) -> str:
        evaluation = self.run.evaluation
        if evaluation is None:
            return ""
        metrics = "".join(
            f"<span><i>{html.escape(k)}</i> {v:.4g}</span>" for k, v in evaluation.metrics.items()
        )
        rows = "".join(map(self._score_row, evaluation.episodes))
        table = (
            '<div class="scroll"><table class="sortable"><thead><tr><th>Set</th><th>Seed</th>'
            f"<th>Max reward</th><th>Video</th></tr></thead><tbody>{rows}</tbody></table></div>"
            if rows
            else ""
        )
        return section(
            "Episodes", f'<p class="metrics">{metrics}</p>{table}', note=evaluation.origin
        )

    def _score_row(self, episode: Episode) -> str:
        score, fill = "–", 0.0
        if episode.score is not None:
            score, fill = f"{episode.score:.3f}", 100 * min(max(episode.score, 0.0), 1.0)
        video = ""
        if episode in self.embedded:
            video = f'<a href="#{_anchor(episode)}" data-play="{_anchor(episode)}">play</a>'
        elif episode.video is not None:
            video = _link(episode.video, "file", self.output)
        return (
            f"<tr><td>{html.escape(episode.group)}</td><td>{episode.seed}</td>"
            f'<td data-value="{-1 if episode.score is None else episode.score!r}">'
            f'<span class="bar"><span style="width:{fill:.1f}%"></span></span>{score}</td>'
            f"<td>{video}</td></tr>"
        )

    def checkpoints(self) -> str:
        rows = []
        for path in self.run.checkpoints:
            stat = path.stat()
            changed = datetime.datetime.fromtimestamp(stat.st_mtime)
            rows.append(
                f"<tr><td>{_link(path, path.name, self.output)}</td>"
                f'<td data-value="{stat.st_size}">{stat.st_size / 1e6:,.1f} MB</td>'
                f"<td>{changed:%Y-%m-%d %H:%M}</td></tr>"
            )
        if not rows:
            return ""
        return section(
            "Checkpoints",
            '<div class="scroll"><table class="sortable"><thead><tr><th>File</th><th>Size</th>'
            f"<th>Written</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>",
        )

    def machine(self) -> str:
        machine = self.run.info.get("machine", {})
        items = "".join(
            f"<dt>{html.escape(str(k))}</dt><dd>{html.escape(str(v))}</dd>"
            for k, v in machine.items()
        )
        return section("Machine", f"<dl>{items}</dl>") if items else ""

    def reproduce(self) -> str:
        if self.run.command is None:
            return ""
        return section("Reproduce", f'<pre class="command">{html.escape(self.run.command)}</pre>')

    def config(self) -> str:
        if self.run.config_text is None:
            return ""
        n_lines = self.run.config_text.count("\n")
        return section(
            "Configuration",
            f"<details><summary>.hydra/config.yaml, {n_lines} lines</summary>"
            f"<pre>{_highlight_yaml(self.run.config_text)}</pre></details>",
        )


def _embeddable(evaluation: Evaluation | None, max_videos: int) -> list[Episode]:
    """The episodes whose videos go into the page: the first ones, within number and size limits."""
    chosen, n_bytes = [], 0
    for episode in evaluation.episodes if evaluation else ():
        if episode.video is None or len(chosen) == max_videos:
            continue
        n_bytes += episode.video.stat().st_size
        if n_bytes > MAX_VIDEO_BYTES:
            break
        chosen.append(episode)
    return chosen


def _video_card(episode: Episode) -> str:
    assert episode.video is not None
    content = base64.b64encode(episode.video.read_bytes()).decode()
    score = "" if episode.score is None else f"<b>{episode.score:.3f}</b>"
    name = f"{html.escape(episode.group)} {episode.seed}"
    return (
        f'<figure id="{_anchor(episode)}"><video controls muted loop playsinline'
        f' preload="auto" aria-label="rollout {name}"'
        f' src="data:video/mp4;base64,{content}"></video>'
        f"<figcaption>{name}{score}</figcaption></figure>"
    )


def _anchor(episode: Episode) -> str:
    return html.escape(re.sub(r"\W", "-", f"rollout-{episode.group}-{episode.seed}"))


def _link(target: pathlib.Path, label: str, output: pathlib.Path) -> str:
    """A link from the page to a file, relative: it works as long as both are moved together."""
    relative = os.path.relpath(target.resolve(), output.resolve().parent)
    return f'<a href="{urllib.parse.quote(relative)}">{html.escape(label)}</a>'


def _highlight_yaml(text: str) -> str:
    """Escaped YAML with its keys marked up; the text stays as it is, to be copied."""
    key = re.compile(r"^(\s*(?:- )*)([\w./-]+)(?=:(?:\s|$))", re.MULTILINE)
    return key.sub(r"\1<i>\2</i>", html.escape(text))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
