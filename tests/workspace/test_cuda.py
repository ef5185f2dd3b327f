"""What only a GPU can show. Skipped, with the reason, where there is none."""

import torch
from generators import seeded
from gpu import needs_gpu, no_waiting
from runs import build, train

pytestmark = needs_gpu


def test_no_training_step_waits_for_the_device(tiny_config, tmp_path):
    """CUDA itself reports every synchronisation inside of a step as an error."""
    workspace = build(tiny_config("training.device=cuda:0"), tmp_path)
    train_step, steps = workspace.train_step, []

    def watched(batch):
        if not steps:  # the first step sets optimizer state and library handles up
            steps.append(1)
            return train_step(batch)
        with no_waiting():
            return train_step(batch)

    workspace.train_step = watched
    workspace.run()


def test_a_run_resumes_on_the_gpu(tiny_config, tmp_path):
    train(tiny_config("training.device=auto"), tmp_path)
    workspace = train(tiny_config("training.device=auto", "training.num_epochs=4"), tmp_path)
    assert workspace.epoch == 4
    assert next(workspace.model.parameters()).is_cuda


def test_a_gpu_policy_predicts_as_on_the_cpu(tiny_config, tmp_path):
    workspace = train(tiny_config("training.num_epochs=1"), tmp_path)
    policy = workspace.get_eval_policy().eval()
    obs = {"obs": torch.rand(3, 2, 20) * 500}

    def predict(device):
        policy.to(device)
        batch = {key: value.to(device) for key, value in obs.items()}
        return policy.predict_action(batch, generator=seeded(0, 1, 2))["action"].cpu()

    torch.testing.assert_close(predict("cuda"), predict("cpu"), rtol=1e-2, atol=1.0)
