"""Records the Push-T demonstrations of a person with a mouse (command line: ``demo_pusht.py``)."""

import enum
import os
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pygame

from diffusion_policy.common.errors import DeviceError
from diffusion_policy.common.replay_buffer import ReplayBuffer
from diffusion_policy.env.pusht.pusht_keypoints_env import PushTKeypointsEnv

N_BLOCK_KEYPOINTS = 9


class Ending(enum.Enum):
    """How a demonstration ended."""

    DONE = "done"  # the T is on its goal
    RETRY = "retry"  # R: once more, from the same start
    QUIT = "quit"  # Q, or the window was closed


def require_display() -> None:
    """Open the connection to the screen.

    Raises:
        DeviceError: when there is none. (SDL would draw into memory then, and wait for a mouse for
            ever.)
    """
    try:
        pygame.display.init()
        driver = pygame.display.get_driver()
    except pygame.error as error:
        driver = str(error)
    else:
        if driver != "offscreen" or os.environ.get("SDL_VIDEODRIVER"):
            return
    raise DeviceError(
        f"no display was found ({driver}), but demonstrations are given with the mouse in a "
        f"window: run this on a machine with a screen, or through a remote desktop or ssh -X"
    )


class PushTRecorder:
    """Records one episode after the other into a replay buffer.

    The start of an episode is drawn from its number in the buffer, so a recording that is continued
    goes on with new starts.

    Args:
        buffer: where finished episodes go.
        env: with ``render_action=False``: images are observations.
        control_hz: steps per second.
        tell: what to do with messages for the person.
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        env: PushTKeypointsEnv,
        control_hz: float,
        tell: Callable[[str], object] = print,
    ):
        self.buffer = buffer
        self.env = env
        self.control_hz = control_hz
        self.tell = tell
        self.clock = pygame.time.Clock()
        self.paused = False
        self.plan_idx = -1

    def run(self) -> None:
        """Record until the person quits."""
        solved_from_the_start = 0
        while True:
            seed = self.buffer.n_episodes + solved_from_the_start
            self.tell(f"starting seed {seed}")
            ending, episode = self.record_episode(seed)
            if ending is Ending.QUIT:
                return
            if ending is Ending.RETRY:
                self.tell(f"retry seed {seed}")
            elif not episode:
                solved_from_the_start += 1
                self.tell(f"seed {seed} needs no demonstration")
            else:
                self.buffer.add_episode(episode, compressors="disk")
                self.tell(f"saved seed {seed}")

    def record_episode(self, seed: int) -> tuple[Ending, dict[str, np.ndarray]]:
        """Let a person solve one start.

        Returns:
            How it ended, and what was recorded: ``img``, ``state``, ``keypoint``, ``action``,
            ``n_contacts``, each ``(steps, ...)``; empty when nobody touched the agent.
        """
        obs, info = self.env.reset(seed=seed)
        image = self.env.render_frame("human")
        person = self.env.teleop_agent()
        self.paused, self.plan_idx = False, -1
        self._show_plan()
        steps: dict[str, list] = defaultdict(list)
        ending = None
        while ending is None:
            ending = self._handle_keys()
            if ending is None and not self.paused:
                action = person.act(obs)
                if action is not None:
                    for key, value in observed_step(obs, info, image, action).items():
                        steps[key].append(value)
                obs, _, done, _, info = self.env.step(action)
                image = self.env.render_frame("human")
                ending = Ending.DONE if done else None
            self.clock.tick(self.control_hz)
        return ending, {key: np.stack(values) for key, values in steps.items()}

    def _handle_keys(self) -> Ending | None:
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                return Ending.QUIT
            key = getattr(event, "key", None)
            if event.type == pygame.KEYDOWN and key == pygame.K_q:
                return Ending.QUIT
            if event.type == pygame.KEYDOWN and key == pygame.K_r:
                return Ending.RETRY
            if event.type == pygame.KEYDOWN and key == pygame.K_SPACE:
                self.plan_idx += 1
                self._show_plan()
            if key == pygame.K_SPACE:
                self.paused = event.type == pygame.KEYDOWN
        return None

    def _show_plan(self) -> None:
        pygame.display.set_caption(f"plan_idx:{self.plan_idx}")


def observed_step(
    obs: np.ndarray, info: dict, image: np.ndarray, action: np.ndarray
) -> dict[str, np.ndarray]:
    """What was seen and what was done then, in the layout of the published demonstrations."""
    values, _visible = obs.reshape(2, -1)
    return {
        "img": image,
        "state": np.array([*info["pos_agent"], *info["block_pose"]], np.float32),
        "keypoint": values.reshape(-1, 2)[:N_BLOCK_KEYPOINTS].astype(np.float32),
        "action": np.asarray(action, np.float32),
        "n_contacts": np.array([info["n_contacts"]], np.float32),
    }
