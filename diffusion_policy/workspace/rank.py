"""One of the processes that ``launch`` starts: ``python -m diffusion_policy.workspace.rank``."""

from diffusion_policy.common import interrupts


def main() -> None:
    interrupts.end_at_once(say=False)  # the launcher does

    from diffusion_policy.workspace.launch import die_with_launcher

    die_with_launcher()

    from diffusion_policy.workspace.command_line import run_hydra

    run_hydra()


if __name__ == "__main__":
    main()
