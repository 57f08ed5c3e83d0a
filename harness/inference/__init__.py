"""Model inference as a workload. Nothing here yet."""
