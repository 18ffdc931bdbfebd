"""What the loops of the stages call."""
