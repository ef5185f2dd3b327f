"""Run one command on a ray cluster, with the code as it is here now.

    ray start --head --num-gpus=1
    python ray_exec.py -- python train.py --config-name=demo_pusht hydra.run.dir=data/outputs/my_run

    python ray_exec.py --num_cpus=4 --num_gpus=0 -- python eval.py -c data/latest.ckpt -o data/eval

ray copies the folder of this script, without what git ignores, to the node that has room. There,
data/ is the folder that --data_src names, which all nodes have to share: what the command writes
below data/ stays. Its output appears here. Ctrl-C interrupts the command; a second one kills it.
"""

import click

from diffusion_policy.common import interrupts
from diffusion_policy.multirun.options import ray_options
from diffusion_policy.multirun.run_command import worker_fn

__all__ = ["main", "worker_fn"]


@click.command(help=str(__doc__).replace("\n\n", "\n\n\b\n"))
@ray_options
@click.argument("command_args", nargs=-1, required=True)
def main(command_args, **options):
    from diffusion_policy.workspace.command_line import errors_as_sentences

    with errors_as_sentences():
        from diffusion_policy.multirun.ray_command import run_on_cluster
        from diffusion_policy.multirun.terminal import messages_to_stderr

        with messages_to_stderr():
            code = run_on_cluster(command_args, **options)
    click.echo(code)
    raise SystemExit(0 if code == 0 else 130)


if __name__ == "__main__":
    interrupts.end_at_once()  # until errors_as_sentences: imports take a while
    main()
