"""Data: WebDataset shards read by index, the global order of samples, and the batches of a rank."""
