"""Remote files: S3, HTTP and folders, the disk cache of shards, and checkpoints on S3."""
