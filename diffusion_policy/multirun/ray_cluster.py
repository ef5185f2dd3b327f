"""Joins the ray cluster that is running, or starts one on this machine."""

import logging
import os
import pathlib
import secrets
import socket
from typing import Any

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.multirun.resources import Machine
from diffusion_policy.multirun.run_command import REPOSITORY

log = logging.getLogger(__name__)

AUTO, LOCAL = "auto", "local"
PROBE_S = 5.0
_LOCAL_OBJECT_STORE_BYTES = 100 * 2**20  # nothing large travels through ray


def connect(address: str, machine: Machine, log_to_driver: bool) -> bool:
    """Makes this process a driver of a ray cluster, in whose workers the repository is.

    Args:
        address: ``host:port``; ``local``: of a new cluster on this machine; ``auto``: of the one
            that runs, or else a new one.
        machine: What a new cluster has.
        log_to_driver: Print what the workers print.

    Returns:
        Whether the cluster is a new one.

    Raises:
        ConfigError: No ray answers there, or ray is not installed.
    """
    _set_environment()
    try:
        import ray
        from ray.exceptions import RayError
    except ImportError as error:
        raise ConfigError(
            'ray is not installed; pip install "diffusion_policy[ray]", or do without it: '
            "--backend process"
        ) from error
    running = None if address == LOCAL else find_cluster(address)
    options: dict[str, Any] = {
        # Everybody works with the code as it is now. ray leaves out what git ignores.
        "runtime_env": {"working_dir": str(REPOSITORY), "excludes": [".git"]},
        "log_to_driver": log_to_driver,
        "logging_level": logging.ERROR,
    }
    try:
        if running is not None:
            ray.init(address=running, **options)
        else:
            _start_local(machine, options)
    except (RayError, RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if running is None:
            raise ConfigError(f"ray cannot be started on this machine: {reason}") from error
        raise ConfigError(
            f"the ray cluster at {running} cannot be joined: {reason}; it needs the token of its "
            "owner (RAY_AUTH_TOKEN, or ~/.ray/auth_token) and the same versions of Python and ray"
        ) from error
    return running is None


def find_cluster(address: str) -> str | None:
    """``host:port`` of a running cluster, None if ``auto`` finds none.

    ray itself tries for minutes to reach a cluster that is gone.

    Raises:
        ConfigError: A given address does not answer.
    """
    from ray._private.services import canonicalize_bootstrap_address

    given = os.environ.get("RAY_ADDRESS") if address == AUTO else address
    try:
        found = canonicalize_bootstrap_address(address)
    except ConnectionError:
        found = None
    except (ValueError, OSError) as error:
        raise ConfigError(f"ray address {given}: {error}; give host:port") from error
    if found is None:
        log.info("No ray cluster is running here; starting one on this machine.")
        return None
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_S).close()
    except OSError as error:
        if given:
            raise ConfigError(
                f"no ray cluster answers at {found} ({error}); start one with `ray start --head`, "
                "or pass --ray_address local"
            ) from error
        log.info("The ray cluster at %s is gone; starting one on this machine.", found)
        return None
    return found


def _start_local(machine: Machine, options: dict[str, Any]) -> None:
    """A cluster of one node that nobody else can reach."""
    import ray
    from ray._private import ray_constants

    # Every port on the loopback interface: what ray does where it cannot have several nodes. Its
    # processes read the environment, this one has read it.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    # And with a token, against other users of this machine; ray would write one into the home
    # folder, where it changes what a later `ray start` does.
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray.init(
        address=LOCAL,
        num_cpus=machine.num_cpus,
        num_gpus=len(machine.gpus),
        include_dashboard=False,
        object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
        **options,
    )


def _set_environment() -> None:
    """Before ray is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # `ray start` turns authentication on where there is a token; a driver has to be told.
    names = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    default_token = pathlib.Path.home() / ".ray" / "auth_token"
    if any(name in os.environ for name in names) or default_token.exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
