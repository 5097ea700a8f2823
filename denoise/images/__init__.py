"""Images: files, pixel arrays, tensors, metrics and the noise level of one image."""
