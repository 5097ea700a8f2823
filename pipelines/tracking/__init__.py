"""MLflow runs: one for each training run, complete even if MLflow was unreachable for a while."""
