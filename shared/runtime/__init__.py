"""What every room stands on: errors, randomness, processes, artifact folders, stop requests."""
