"""Record demonstrations of Push-T with the mouse.

    python demo_pusht.py -o data/my_pusht_demos.zarr

Move the mouse to the blue disc to take hold of it, then push the gray T onto the green one. The
episode is saved the moment the T is in place, in the layout of the published demonstrations; a kill
or a power cut costs no more than the running episode. Start the command again to add more. Train on
them with task.dataset.zarr_path=data/my_pusht_demos.zarr.

Keys:

    Space  hold to pause; also counts a new plan in the title of the window
    R      retry: discard the running episode and start it again
    Q      quit: discard the running episode
"""

import click

from diffusion_policy.common import interrupts


@click.command(help=str(__doc__).replace("\n\n    ", "\n\n\b\n    "))
@click.option(
    "-o", "--output", required=True, help="The .zarr folder; created, or extended if it exists."
)
@click.option(
    "-rs", "--render_size", default=96, show_default=True, help="Side of the recorded images, px."
)
@click.option("-hz", "--control_hz", default=10, show_default=True, help="Steps per second.")
def main(output: str, render_size: int, control_hz: int) -> None:
    """Command line."""
    from diffusion_policy.workspace.command_line import errors_as_sentences

    with errors_as_sentences():
        from diffusion_policy.common.replay_buffer import ReplayBuffer
        from diffusion_policy.env.pusht.pusht_keypoints_env import PushTKeypointsEnv
        from diffusion_policy.scripts.pusht_recorder import PushTRecorder, require_display

        require_display()
        buffer = ReplayBuffer.create_from_path(output, mode="a")
        env = PushTKeypointsEnv(render_size=render_size, render_action=False)
        try:
            PushTRecorder(buffer, env, control_hz, tell=click.echo).run()
        finally:
            env.close()
    click.echo(f"{output}: {buffer.n_episodes} episodes, {buffer.n_steps} steps")


if __name__ == "__main__":
    interrupts.end_at_once()  # until errors_as_sentences: imports take a while
    main()
