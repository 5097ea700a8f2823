"""The code of a logged model: MLflow runs this file to load the model, beside a copy of the package denoise.

It is the only module that acts at import (it passes the model to MLflow), and no other module imports it.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc.model import PythonModel


class PyfuncDenoiser(PythonModel):
    """A denoiser for images of any size, as an MLflow pyfunc model."""

    def load_context(self, context: Any) -> None:
        """Load the weights, onto the GPU if there is one."""
        import torch

        from denoise.denoiser import load_denoiser

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.denoiser = load_denoiser(Path(context.artifacts["denoiser"]), self.device)

    def predict(
        self,
        context: Any,
        model_input: np.ndarray,  # MLflow reads this annotation and knows the bare name only
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Map noisy images (B, C, H, W), float32 in [0, 1], to restored ones of the same shape, not clipped."""
        import torch

        from denoise.tiling import restore_batch

        noisy = torch.tensor(model_input, dtype=torch.float32, device=self.device)
        return restore_batch(self.denoiser, noisy).cpu().numpy()


mlflow.models.set_model(PyfuncDenoiser())
