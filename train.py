"""Train a policy.

    python train.py --config-name=train_diffusion_unet_lowdim_workspace

Override anything:

    python train.py --config-name=demo_pusht training.seed=1 training.device=cpu

Name the run directory; the same command again resumes the run:

    python train.py --config-name=demo_pusht hydra.run.dir=data/outputs/my_run

Train from a published configuration; show a configuration without running it:

    python train.py --config-dir=. --config-name=published_config.yaml
    python train.py --config-name=demo_pusht --cfg job

Several runs, one after the other, or as many at a time as hydra.launcher.n_jobs says:

    python train.py --multirun --config-name=demo_pusht training.seed=42,43
    python train.py --multirun --config-name=demo_pusht training.seed=42,43 \\
        hydra/launcher=joblib hydra.launcher.n_jobs=2

A configuration may name the classes of this project, and your own code (found in the working
directory or on PYTHONPATH). What else it names needs your word:

    --allow=NAME      a class, module or installed package that it may name
    --trust-config    it may name anything, so it can run any code: only for files you wrote

The run directory (hydra.run.dir) receives .hydra/ (the configuration), logs.json.txt (one line per
step), checkpoints/, media/ (rollout videos) and wandb/. Make a page of it:

    python -m diffusion_policy.report <run directory>
"""

import sys

from diffusion_policy.common import interrupts


def describe() -> str:
    from diffusion_policy.workspace.command_line import CONFIG_DIR, OPTIONS

    names = "\n".join(f"  {p.stem}" for p in sorted(CONFIG_DIR.glob("*.yaml")))
    tasks = "\n".join(f"  task={p.stem}" for p in sorted((CONFIG_DIR / "task").glob("*.yaml")))
    options = "\n".join(f"  {name}=...  {text}" for name, text in OPTIONS.items())
    return (
        f"{__doc__}\nConfigurations:\n{names}\n\nTasks:\n{tasks}\n\nOptions that any configuration "
        f"takes, beside what it has:\n{options}\n\nHydra's own: --hydra-help\n"
    )


def main() -> None:
    asked = {"--help", "-h"} & set(sys.argv[1:])
    if asked or not any(a.startswith(("--config-name", "-cn", "--hydra-help")) for a in sys.argv):
        (sys.stdout if asked else sys.stderr).write(describe())
        sys.exit(0 if asked else "error: --config-name is missing; choose one of the above")

    from diffusion_policy.workspace.command_line import run_hydra

    run_hydra()


if __name__ == "__main__":
    interrupts.end_at_once()  # until errors_as_sentences: imports take a while
    main()
