"""Aggregate the metrics of a multi-seed sweep while it runs, or afterwards.

    python multirun_metrics.py -i data/outputs/2026.01.01/12.00.00_my_sweep
    python multirun_metrics.py -i <sweep> -k test/mean_score -k train/mean_score --until_done

Reads <sweep>/train_*/logs.json.txt and writes <sweep>/metrics/: logs.json.txt (one line per
rollout), metrics.json (the last of them), metrics.log.

It can be stopped (Ctrl-C) and started again at any time. Seeds may be at different stages: a line
is written when every seed that has started has that rollout. A seed that failed for good holds the
others back; move its train_* folder elsewhere to leave it out.
"""

import click

from diffusion_policy.common import interrupts


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("-i", "--input", "sweep_dir", required=True, help="The folder of the sweep.")
@click.option(
    "-k",
    "--key",
    "keys",
    multiple=True,
    default=["test/mean_score"],
    show_default=True,
    help="A metric of the rollouts; repeat the option for several.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds between two looks at the logs.",
)
@click.option(
    "--replace_slash",
    type=bool,
    default=True,
    show_default=True,
    help="Name a metric max/test_mean_score, not max/test/mean_score.",
)
@click.option(
    "-ik",
    "--index_key",
    default="global_step",
    show_default=True,
    help="The x axis in wandb: global_step or epoch.",
)
@click.option("-w", "--use_wandb", is_flag=True, help="Log to wandb as well.")
@click.option("--project", help="wandb project.  [default: logging.project in config.yaml]")
@click.option("--name", help="wandb run name.  [default: logging.name in config.yaml]")
@click.option("--id", help="wandb run id.  [default: one per sweep]")
@click.option("--group", help="wandb group.  [default: logging.group in config.yaml]")
@click.option(
    "--until_done",
    is_flag=True,
    help="End when every seed that has a folder has made its last rollout.",
)
def main(sweep_dir, keys, interval, replace_slash, index_key, use_wandb, until_done, **wandb):
    from diffusion_policy.workspace.command_line import errors_as_sentences

    with errors_as_sentences():
        from diffusion_policy.multirun.watch import run_monitor

        metrics = run_monitor(
            sweep_dir,
            keys,
            interval=interval,
            replace_slash=replace_slash,
            index_key=index_key,
            wandb_options=wandb if use_wandb else None,
            until_done=until_done,
        )
    for name, value in (metrics or {}).items():
        click.echo(f"{name}: {value:.6g}")
    click.echo(f"{sweep_dir}/metrics/metrics.json" if metrics else "No rollout so far.")


if __name__ == "__main__":
    interrupts.end_at_once()  # until errors_as_sentences: imports take a while
    main()
