"""Evaluate a checkpoint: roll its policy out in the environments its configuration names.

    python eval.py -c data/outputs/my_run/checkpoints/latest.ckpt -o data/eval
    python eval.py -c published.ckpt -o data/eval task.env_runner.n_test=100

The second one overrides the checkpoint's configuration; anything in it can be overridden.

Writes eval_log.json (every metric, every video's path) and media/ into the output directory.
"""

import click

from diffusion_policy.common import interrupts


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@click.option("-c", "--checkpoint", required=True, help="The .ckpt file.")
@click.option("-o", "--output_dir", required=True, help="Where results go.")
@click.option(
    "-d", "--device", default="auto", show_default=True, help="cpu, cuda:0, ...; auto: the best."
)
@click.option("--overwrite", is_flag=True, help="Use an existing output directory without asking.")
@click.option(
    "--deterministic",
    is_flag=True,
    help="Fixed policy batch shape: the score is identical for any n_envs.",
)
@click.option(
    "--trust-checkpoint",
    is_flag=True,
    help="Allow the file to run any code: while it is read, and by what it names.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="NAME",
    help="A class, module or package that its configuration may name beside this project's; repeat "
    "the option for several.",
)
@click.argument("overrides", nargs=-1)
def main(
    checkpoint, output_dir, device, overwrite, deterministic, trust_checkpoint, allow, overrides
):
    from diffusion_policy.workspace.command_line import errors_as_sentences

    with errors_as_sentences():
        from diffusion_policy.workspace.evaluation import evaluate, prepare_output_dir

        prepare_output_dir(output_dir, ask=None if overwrite else click.confirm)
        log = evaluate(
            checkpoint,
            output_dir,
            device=device,
            overrides=list(overrides),
            deterministic=deterministic,
            trust=trust_checkpoint,
            allow=allow,
        )
    for key in sorted(k for k in log if k.endswith("mean_score")):
        click.echo(f"{key}: {log[key]:.4f}")
    click.echo(f"{output_dir}/eval_log.json")


if __name__ == "__main__":
    interrupts.end_at_once()  # until errors_as_sentences: imports take a while
    main()
