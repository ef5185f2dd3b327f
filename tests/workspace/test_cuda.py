"""What only a GPU can show. Skipped, with the reason, where there is none."""

import pytest
import torch

from diffusion_policy.workspace.train_diffusion_unet_lowdim_workspace import (
    TrainDiffusionUnetLowdimWorkspace as Workspace,
)

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device on this machine"
)


def test_no_training_step_waits_for_the_device(tiny_config, tmp_path):
    """CUDA itself reports every synchronisation inside of a step as an error."""
    workspace = Workspace(tiny_config("training.device=cuda:0"), output_dir=str(tmp_path))
    train_step, steps = workspace.train_step, []

    def watched(batch):
        if not steps:  # the first step sets optimizer state and library handles up
            steps.append(1)
            return train_step(batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return train_step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    workspace.train_step = watched
    workspace.run()


def test_a_run_resumes_on_the_gpu(tiny_config, tmp_path):
    Workspace(tiny_config("training.device=auto"), output_dir=str(tmp_path)).run()
    longer = tiny_config("training.device=auto", "training.num_epochs=4")
    workspace = Workspace(longer, output_dir=str(tmp_path))
    workspace.run()
    assert workspace.epoch == 4
    assert next(workspace.model.parameters()).is_cuda


def test_a_gpu_policy_predicts_as_on_the_cpu(tiny_config, tmp_path):
    workspace = Workspace(tiny_config("training.num_epochs=1"), output_dir=str(tmp_path))
    workspace.run()
    policy = workspace.get_eval_policy().eval()
    obs = {"obs": torch.rand(3, 2, 20) * 500}

    def predict(device):
        policy.to(device)
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        batch = {key: value.to(device) for key, value in obs.items()}
        return policy.predict_action(batch, generator=generators)["action"].cpu()

    torch.testing.assert_close(predict("cuda"), predict("cpu"), rtol=1e-2, atol=1.0)
