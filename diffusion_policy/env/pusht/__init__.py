"""Push-T. Importing this package registers its environments with gymnasium; the code loads when one
is made.
"""

from gymnasium.envs.registration import register

_HERE = "diffusion_policy.env.pusht"

register(
    id="pusht-keypoints-v0",
    entry_point=f"{_HERE}.pusht_keypoints_env:PushTKeypointsEnv",
    max_episode_steps=200,
    reward_threshold=1.0,
)
