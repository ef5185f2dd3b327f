"""The table of scores as the paper has it: best checkpoint and mean of the last ten, over seeds."""

import html
from collections.abc import Sequence

from diffusion_policy.report.elements import EMPTY, group_style, key_label
from diffusion_policy.report.groups import Group, Member
from diffusion_policy.report.run_data import Run, sort_score_keys
from diffusion_policy.report.scores import N_LAST, Score, Spread, score_of, spread_of
from diffusion_policy.report.shell import number_cell, section, table


def score_keys(runs: Sequence[Run]) -> list[str]:
    """The scores that any of the runs has."""
    return sort_score_keys(key for run in runs for key in run.series)


def run_score(run: Run, key: str) -> Score | None:
    """The score of a run so far."""
    return score_of(run.series.get(key, EMPTY).values)


def group_spreads(group: Group, key: str) -> tuple[Spread | None, Spread | None]:
    """Over the seeds of a group: of the best checkpoints, and of the means of the last ten."""
    scores = [score for run in group.runs if (score := run_score(run, key))]
    return spread_of([s.best for s in scores]), spread_of([s.last for s in scores])


def run_scores_section(run: Run) -> str:
    """One run: a row for each of its scores."""
    rows = []
    for key in run.score_keys:
        score = run_score(run, key)
        if score is not None:
            rows.append([html.escape(key), *_score_cells(score), str(score.n)])
    header = ["Score", "Max", f"Mean of the last {N_LAST}", "Evaluations"]
    return section("Scores", table(header, rows), note="over all evaluations") if rows else ""


def group_scores_section(groups: Sequence[Group]) -> str:
    """Several groups: a row for each, and below it the same of every seed."""
    keys = score_keys([run for group in groups for run in group.runs])
    if not keys:
        return ""
    rows = [
        [
            f"<td>{key_label(group.label, group_style(i))}</td>",
            number_cell(len(group.runs), str(len(group.runs))),
            *(cell for key in keys for cell in _spread_cells(group, key, groups)),
            _evaluations(group, keys[0]),
        ]
        for i, group in enumerate(groups)
    ]
    seeds = [
        _seed_row(group, i, member, member.run, keys)
        for i, group in enumerate(groups)
        for member in group.members
        if member.run is not None
    ]
    columns = [
        f"{key} {what}" for key in keys for what in ("max", f"last\N{NO-BREAK SPACE}{N_LAST}")
    ]
    header = ["Method", "Seeds", *columns, "Evaluations"]
    seed_header = ["Method", "Run", "Seed", *columns, "Evaluations"]
    explained = (
        f'<p class="muted">max: the best checkpoint of every seed; last {N_LAST}: the mean of its '
        f"last {N_LAST} checkpoints, or of all while there are fewer. Both are averaged over seeds."
        f"{' Bold: the best of a column.' if len(groups) > 1 else ''}</p>"
    )
    every_seed = f"<details><summary>Every seed</summary>{table(seed_header, seeds)}</details>"
    return section(
        "Scores",
        table(header, rows) + explained + every_seed,
        note="mean ± standard deviation over seeds",
    )


def _score_cells(score: Score | None) -> list[str]:
    if score is None:
        return [number_cell(None), number_cell(None)]
    fewer = f"of {score.n_last} evaluations so far" if score.n_last < N_LAST else ""
    return [number_cell(score.best), number_cell(score.last, note=fewer)]


def _seed_row(group: Group, number: int, member: Member, run: Run, keys: list[str]) -> list[str]:
    seed = member.seed
    n = max((score.n for key in keys if (score := run_score(run, key))), default=0)
    return [
        key_label(group.label, group_style(number)),
        html.escape(member.place.name),
        number_cell(seed, str(seed)) if isinstance(seed, int) else number_cell(None),
        *(cell for key in keys for cell in _score_cells(run_score(run, key))),
        number_cell(n, str(n)),
    ]


def _spread_cells(group: Group, key: str, groups: Sequence[Group]) -> list[str]:
    cells = []
    for column in (0, 1):
        spread = group_spreads(group, key)[column]
        others = [group_spreads(other, key)[column] for other in groups]
        best = max((other.mean for other in others if other is not None), default=None)
        cells.append(_spread_cell(spread, len(groups) > 1 and spread and spread.mean == best))
    return cells


def _spread_cell(spread: Spread | None, is_best: object) -> str:
    if spread is None:
        return number_cell(None)
    text = f"<b>{spread.mean:.3f}</b>" if is_best else f"{spread.mean:.3f}"
    if spread.deviation is not None:
        text += f' <small class="muted">± {spread.deviation:.3f}</small>'
    seeds = "seed" if spread.n == 1 else "seeds"
    return number_cell(spread.mean, text, note=f"over {spread.n} {seeds}")


def _evaluations(group: Group, key: str) -> str:
    """How many evaluations the seeds have: one number, where all have as many."""
    numbers = [score.n if (score := run_score(run, key)) else 0 for run in group.runs]
    if not numbers:
        return number_cell(None)
    shown = [numbers[0]] if len(set(numbers)) == 1 else numbers
    return number_cell(min(numbers), ", ".join(map(str, shown)))
