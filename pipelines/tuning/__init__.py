"""Hyperparameter search: an Optuna study whose trials Ray Tune runs."""
