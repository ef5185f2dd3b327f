"""Which ray cluster a sweep takes: the one that runs, or one of its own."""

import psutil
import pytest
from omegaconf import OmegaConf
from runs import read_log
from sweeps import finish, n_epochs, start, states, wait_for

from diffusion_policy.common.errors import ConfigError
from diffusion_policy.multirun.ray_cluster import find_cluster

pytestmark = pytest.mark.xdist_group("ray")


def test_a_cluster_of_its_own_is_on_this_machine_alone(tiny_config, tmp_path):
    cfg = tiny_config("training.tqdm_interval_sec=0")
    OmegaConf.save(cfg, tmp_path / "published.yaml")
    disk = tmp_path / "disk"
    disk.mkdir()
    process = start(
        *(f"--config-dir={tmp_path}", "--config-name=published.yaml", "--seeds=7"),
        *("--ray_address=local", "--num_cpus=1", f"--data_src={disk}"),
        *("--", "multi_run.run_dir=data/outputs/sweep"),
    )
    run = disk / "outputs" / "sweep" / "train_0"
    wait_for(lambda: n_epochs(run), process)
    family = psutil.Process(process.pid).children(recursive=True)
    listening = [
        connection.laddr.ip
        for member in family
        if member.is_running()
        for connection in member.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    output = finish(process)
    assert f"Sweep: {run.parent}" in output
    assert states(run.parent) == ["finished"]
    assert read_log(run)[-1]["epoch"] == 2
    assert (run.parent / "metrics" / "metrics.json").exists()


def test_a_cluster_that_is_gone_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match="no ray cluster answers"):
        find_cluster("auto")
    with pytest.raises(ConfigError, match="give host:port"):
        find_cluster("nonsense")
    monkeypatch.delenv("RAY_ADDRESS")
    if any(process.name() == "gcs_server" for process in psutil.process_iter()):
        pytest.skip("a ray cluster is running on this machine, which auto would find")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert find_cluster("auto") is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    assert find_cluster("auto") is None
