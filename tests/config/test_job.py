from diffusion_policy.config.job import job_arguments


def test_a_job_of_a_sweep_becomes_a_command_line_of_its_own():
    hydra = {
        "job": {"config_name": "published.yaml"},
        "runtime": {
            "config_sources": [
                {"provider": "hydra", "path": "hydra.conf"},
                {"provider": "main", "path": "/ours"},
                {"provider": "command-line", "path": "/theirs"},
            ]
        },
        "overrides": {
            "hydra": [
                "hydra.mode=MULTIRUN",
                "hydra.run.dir=here",
                "hydra.sweep.dir=there",
                "hydra.job.name=train",
                "hydra/launcher=joblib",
                "hydra.launcher.n_jobs=2",
                "++hydra.callbacks.run_directory._target_=ours",
                "hydra.verbose=true",
            ]
        },
    }
    assert job_arguments(hydra, ["training.seed=43", "++training.max_grad_norm=1"]) == [
        "--config-name=published.yaml",
        "--config-dir=/theirs",
        "training.seed=43",
        "++training.max_grad_norm=1",
        "hydra.verbose=true",
    ]
