"""MLflow runs: one for each training run, complete even when MLflow is away for a while."""
