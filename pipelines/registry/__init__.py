"""The MLflow model registry: versions and their promotion."""
