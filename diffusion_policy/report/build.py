"""Reports: one self-contained HTML page about one or several training runs.

No request leaves the page, videos included.
"""

import logging
import os
import pathlib
from collections.abc import Sequence

from diffusion_policy.common.errors import ConfigError, DataError
from diffusion_policy.report.comparison_page import comparison_page
from diffusion_policy.report.elements import Links
from diffusion_policy.report.groups import Member, group_runs
from diffusion_policy.report.page import Page
from diffusion_policy.report.run_data import INPUT_NAMES, Run, load_run
from diffusion_policy.report.run_log import NothingLoggedError
from diffusion_policy.report.run_page import run_page
from diffusion_policy.report.shell import section, write_page
from diffusion_policy.report.sources import Place, find_runs

log = logging.getLogger(__name__)


def build_report(
    folders: str | os.PathLike | Sequence[str | os.PathLike],
    output_path: str | os.PathLike,
    title: str | None = None,
    evaluation_dir: str | os.PathLike | None = None,
    max_videos: int = 12,
) -> pathlib.Path:
    """Writes the report of runs, finished or in progress.

    Args:
        folders: A run or a sweep, or several. A run is an output folder of ``train.py``; a sweep
            has its runs in ``train_*``, or is a folder of ``train.py --multirun``.
        output_path: The page to write; replaced if it exists.
        title: Heading of the page. Default: the names of the folders.
        evaluation_dir: Output folder of ``eval.py`` to show instead of the newest evaluation that
            the training itself made. Only with a single run.
        max_videos: So many videos are embedded; further ones are linked.

    Returns:
        ``output_path`` as a path.

    Raises:
        DataError: If there is no run in a folder, or the only one has no record yet or is damaged.
            Of several runs, those are named in the page.
        ConfigError: If there is an ``evaluation_dir`` for several runs.
        DiffusionPolicyError: If the page cannot be written.
    """
    names = [folders] if isinstance(folders, str | os.PathLike) else folders
    output = pathlib.Path(output_path)
    page = Report(names, title, evaluation_dir, max_videos).page(output)
    write_page(output, page.render())
    return output


class Report:
    """The report of some folders, which can be made again and again while the runs go on.

    Args: as of :func:`build_report`.
    """

    def __init__(
        self,
        folders: Sequence[str | os.PathLike],
        title: str | None = None,
        evaluation_dir: str | os.PathLike | None = None,
        max_videos: int = 12,
    ):
        self._folders = [pathlib.Path(folder) for folder in folders]
        self._title = title
        self._evaluation_dir = evaluation_dir
        self._max_videos = max_videos
        self._loaded: dict[pathlib.Path, tuple[tuple, Run]] = {}

    def fingerprint(self) -> tuple:
        """Changes when the page would change. Costs a few calls to the file system per run."""
        return tuple((place, _fingerprint(place.folder)) for place in self._find())

    def page(self, output: pathlib.Path | None, patient: bool = False) -> Page:
        """The page as of now. Runs that have not changed since the last call are not read again.

        Args:
            output: Where it will lie, for its links; None: it will be served.
            patient: A single run that has no record yet is a page that says so, not an error.

        Raises:
            DataError: If there is no run in a folder, or the only one cannot be read.
            ConfigError: If there is an ``evaluation_dir`` for several runs.
        """
        places = self._find()
        links = Links(output)
        if [place.folder for place in places] != self._folders or len(places) != 1:
            if self._evaluation_dir is not None:
                raise ConfigError(
                    f"An evaluation can be shown with a single run, and here are {len(places)}; "
                    "name that run alone, or leave --eval out."
                )
            groups = group_runs([self._load_member(place) for place in places])
            return comparison_page(groups, self._title, links, self._max_videos)
        (place,) = places
        try:
            run = self._load(place)
        except NothingLoggedError as e:
            if not patient:
                raise
            waiting = section("Waiting", '<p class="muted">The run has no record yet.</p>')
            return Page(self._title or place.name, str(e), {"waiting": waiting})
        return run_page(Member(place, run), run, self._title, links, self._max_videos)

    def _find(self) -> list[Place]:
        try:
            return find_runs(self._folders)
        except OSError as e:
            raise DataError(
                f"Cannot read {e.filename}: {e.strerror}; make it readable, or leave it out."
            ) from e

    def _load_member(self, place: Place) -> Member:
        try:
            return Member(place, self._load(place))
        except NothingLoggedError:
            return Member(place)
        except DataError as e:
            return Member(place, problem=str(e))

    def _load(self, place: Place) -> Run:
        fingerprint = _fingerprint(place.folder)
        known, run = self._loaded.get(place.folder, (None, None))
        if run is None or known != fingerprint:
            try:
                run = load_run(place.folder, self._evaluation_dir, place.shared_config)
            except OSError as e:
                raise DataError(
                    f"Cannot read {e.filename or place.folder}: {e.strerror}; make it readable, or "
                    "leave that run out."
                ) from e
            self._loaded[place.folder] = fingerprint, run
            for note in run.notes:
                log.warning("%s", note)
        return run


def _fingerprint(folder: pathlib.Path) -> tuple:
    """Sizes and times of change of the files that a report reads."""
    stats = []
    for name in INPUT_NAMES:
        try:
            stat = os.stat(folder / name)
            stats.append((stat.st_size, stat.st_mtime_ns))
        except OSError:
            stats.append(None)
    return tuple(stats)
