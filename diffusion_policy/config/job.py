"""The command line of a Hydra job, from what Hydra knows about it."""

import re
from collections.abc import Mapping
from typing import Any

# Run directory and name are the caller's to choose; the rest says how several jobs are run.
_NOT_OF_A_JOB = re.compile(
    r"\+*hydra\.(run\.dir|job\.name|mode|sweep\.\w+|(sweeper|launcher|callbacks\.run_directory)\..*)="
)
_GROUPS_OF_SWEEPS = re.compile(r"\+*hydra/(sweeper|launcher)=")


def job_arguments(hydra: Mapping[str, Any], overrides: list[str]) -> list[str]:
    """Arguments of ``train.py`` that make the same configuration, without a run directory.

    Args:
        hydra: the ``hydra`` node of the job, unresolved (``HydraConfig.get()`` as a container, or
            ``.hydra/hydra.yaml``): a reference in an override is passed on as it was given.
        overrides: of the job's own configuration, unresolved (``.hydra/overrides.yaml``).
    """
    arguments = [f"--config-name={hydra['job']['config_name']}"]
    arguments += [
        f"--config-dir={source['path']}"
        for source in hydra["runtime"]["config_sources"]
        if source["provider"] == "command-line"
    ]
    of_hydra = [
        override
        for override in hydra["overrides"]["hydra"]
        if not (_NOT_OF_A_JOB.match(override) or _GROUPS_OF_SWEEPS.match(override))
    ]
    return [*arguments, *overrides, *of_hydra]
