"""What two stages or more use. It never imports `stages`."""
