"""Which images are worth a label, and a sheet on which a person gives it."""
