"""Images and labels in, augmented batches out."""
