"""robomimic's configurations of its published experiments, and what is built from them.

Mandlekar et al. 2021, "What Matters in Learning from Offline Human Demonstrations". robomimic is an
optional dependency (extra ``sim``): it is imported when something here is called, never before.
"""

import contextlib
import importlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.common.shape_meta import ShapeMeta
from diffusion_policy.common.torchvision_util import import_torchvision

ALGOS = ("bc", "bc_rnn")
LOW_DIM = ("low_dim", "low_dim_sparse", "low_dim_dense")


def import_robomimic(module: str) -> Any:
    """A module of robomimic by its name inside of the package, such as ``algo``.

    Raises:
        ConfigError: robomimic, or something it needs, is not installed.
    """
    import_torchvision()
    try:
        with _quiet():
            return importlib.import_module(f"robomimic.{module}")
    except ImportError as error:
        raise ConfigError(
            f"the LSTM-GMM baseline needs robomimic, which cannot be imported ({error}); install "
            "it: pip install 'diffusion_policy[sim]'"
        ) from error


def get_robomimic_config(
    algo_name: str = "bc_rnn",
    hdf5_type: str = "low_dim",
    task_name: str = "square",
    dataset_type: str = "ph",
) -> Any:
    """The configuration that robomimic's authors trained a data set with.

    Args:
        algo_name: ``bc`` or ``bc_rnn``.
        hdf5_type: kind of observations: ``low_dim``, ``image`` ...
        task_name: of robomimic, such as ``lift``.
        dataset_type: whose demonstrations: ``ph`` (proficient human), ``mh`` (several humans),
            ``mg`` (machine), ``paired``. Machine data come without a mixture of Gaussians.

    Returns:
        A ``robomimic.config.BCConfig``.

    Raises:
        ConfigError: there is no such data set or algorithm, or no robomimic.
    """
    if algo_name not in ALGOS:
        raise ConfigError(f"algo_name is {algo_name!r}; expected one of {', '.join(ALGOS)}")
    paper = import_robomimic("scripts.generate_paper_configs")
    _check_published(paper.DATASET_REGISTRY, task_name, dataset_type, hdf5_type)
    config = paper.config_factory("bc")
    if hdf5_type in LOW_DIM:
        config = paper.modify_config_for_default_low_dim_exp(config)
    else:
        config = paper.modify_config_for_default_image_exp(config)
    # The folder is only written into the configuration: data are loaded by our data sets.
    config = paper.modify_config_for_dataset(
        config, task_name, dataset_type, hdf5_type, base_dataset_dir="/"
    )
    modify = getattr(paper, f"modify_{algo_name}_config_for_dataset")
    return modify(config, task_name, dataset_type, hdf5_type)


def set_observations(config: Any, shapes: ShapeMeta, crop_shape: Sequence[int] | None) -> None:
    """Makes a configuration observe what ``shapes`` says.

    Args:
        crop_shape: (height, width) of the random crops of all images; None for whole images.
    """
    with config.values_unlocked():
        modalities = config.observation.modalities.obs
        modalities.low_dim = list(shapes.low_dim)
        modalities.rgb = list(shapes.rgb)
        modalities.depth = []
        modalities.scan = []
        rgb = config.observation.encoder.rgb
        rgb.obs_randomizer_class = None if crop_shape is None else "CropRandomizer"
        if crop_shape is not None:
            rgb.obs_randomizer_kwargs.crop_height, rgb.obs_randomizer_kwargs.crop_width = crop_shape


def make_algo(config: Any, shapes: ShapeMeta) -> Any:
    """The ``robomimic.algo.Algo`` of a configuration: networks on the CPU, and their optimizers.

    robomimic looks the kinds of observations up in a registry of the process while it builds
    networks. It is set here each time: another configuration may have set it before.
    """
    import torch

    factory = import_robomimic("algo").algo_factory
    with _quiet():
        import_robomimic("utils.obs_utils").initialize_obs_utils_with_config(config)
        return factory(
            config.algo_name,
            config,
            obs_key_shapes={key: list(shape) for key, shape in shapes.obs.items()},
            ac_dim=shapes.action[0],
            device=torch.device("cpu"),
        )


def _check_published(registry: Any, task_name: str, dataset_type: str, hdf5_type: str) -> None:
    """Walks down robomimic's registry of data sets: task, then demonstrators, then observations."""
    known = registry
    options = {"task_name": task_name, "dataset_type": dataset_type, "obs_type": hdf5_type}
    for option, value in options.items():
        # Simulated demonstrations are published raw, too, without observations.
        choices = [name for name in known if name != "raw" or task_name.endswith("_real")]
        if value not in choices:
            raise ConfigError(
                f"robomimic has no published settings for policy.{option}={value!r} (task_name="
                f"{task_name}, dataset_type={dataset_type}, obs_type={hdf5_type}); expected one of "
                f"{', '.join(choices)}"
            )
        known = known[value]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """robomimic prints, and uses old names of torchvision, while it is imported and while it builds
    networks.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
