"""What a worker's main process does besides running batches."""
