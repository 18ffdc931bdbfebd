"""Published weights as an artifact of stage 1 or 2."""
