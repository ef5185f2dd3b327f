"""Train with several seeds, side by side, and aggregate their metrics.

    python ray_train_multirun.py --config-name=demo_pusht --seeds=42,43,44 --backend=process
    python ray_train_multirun.py --config-dir=. --config-name=published.yaml -- horizon=32

On a ray cluster: start it, then the same command without --backend. ray gives every run its GPUs as
cuda:0, cuda:1 ..., so training.device needs no change.

    ray start --head --num-gpus=4
    python ray_train_multirun.py --config-name=train_diffusion_unet_lowdim_workspace

Where no cluster runs, one is started on this machine, and ends with the sweep.

What follows -- are overrides for every run. multi_run.run_dir names the folder of the sweep:

    python ray_train_multirun.py --config-name=demo_pusht -- multi_run.run_dir=data/outputs/my_sweep

It receives config.yaml, sweep.json, status.json, train_0/ train_1/ ... (one run per seed, as
train.py leaves it, and its console.log) and metrics/ (their means). Relative paths in a
configuration or an override count from the folder of this script.

A run that dies continues from its last checkpoint with --max_retries; the others go on. Ctrl-C
interrupts all runs. A sweep that ended early, in any way, is continued with

    python ray_train_multirun.py --resume data/outputs/my_sweep

and trained further with overrides:

    python ray_train_multirun.py --resume data/outputs/my_sweep -- training.num_epochs=100

Exit code: 0 if all runs finished, 130 after Ctrl-C, else 1.
"""

import click

from diffusion_policy.common import interrupts
from diffusion_policy.multirun.options import ray_options

NOT_FOR_RESUME = ("config_name", "config_dir", "seeds", "resume", "overrides")


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("-cn", "--config-name", help="What to train; needed without --resume.")
@click.option(
    "-cd",
    "--config-dir",
    help="A further folder with configurations.  [default: diffusion_policy/config]",
)
@click.option("-s", "--seeds", default="42,43,44", show_default=True, help="One run for each.")
@click.option("--resume", metavar="DIR", help="Continue this sweep.")
@click.option(
    "--backend",
    type=click.Choice(["ray", "process"]),
    default="ray",
    show_default=True,
    help="process: this machine only, without ray.",
)
@click.option(
    "-k",
    "--monitor_key",
    "monitor_keys",
    multiple=True,
    default=["test/mean_score"],
    show_default=True,
    help="A metric of the rollouts to aggregate; repeat the option for several.",
)
@ray_options
@click.option(
    "--monitor_max_retires",
    "--monitor_max_retries",
    "monitor_max_retries",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="The same for the process that aggregates the metrics.",
)
@click.option(
    "--run_timeout_s",
    type=click.FloatRange(min=0),
    default=86400,
    show_default=True,
    help="Seconds after which a run that writes nothing is killed and counts as failed; 0: never.",
)
@click.option("-sn", "--single_node", is_flag=True, help="All runs on one node of the cluster.")
@click.option(
    "--allow",
    multiple=True,
    metavar="NAME",
    help="A class, module or installed package that the configuration may name; see train.py.",
)
@click.option(
    "--trust-config",
    is_flag=True,
    help="The configuration may name anything, so it can run any code: only for files you wrote.",
)
@click.argument("overrides", nargs=-1)
@click.pass_context
def main(
    context, config_name, config_dir, seeds, resume, allow, trust_config, overrides, **options
):
    from diffusion_policy.workspace.command_line import errors_as_sentences

    if (config_name is None) == (resume is None):
        raise click.UsageError("give either --config-name, for a new sweep, or --resume")
    with errors_as_sentences():
        from diffusion_policy.config.targets import allow_targets
        from diffusion_policy.multirun.start import Options, resume_sweep, run_new_sweep
        from diffusion_policy.multirun.sweep import parse_seeds
        from diffusion_policy.multirun.terminal import given_words, messages_to_stderr

        allow_targets(allow, trust_config)
        options = Options(**options, words=given_words(context, NOT_FOR_RESUME))
        with messages_to_stderr():
            if resume is not None:
                outcome = resume_sweep(resume, overrides, options)
            else:
                outcome = run_new_sweep(
                    config_name, config_dir, overrides, parse_seeds(seeds), options
                )
    click.echo(f"\n{outcome.text}")
    raise SystemExit(outcome.exit_code)


if __name__ == "__main__":
    interrupts.end_at_once()  # until errors_as_sentences: imports take a while
    main()
