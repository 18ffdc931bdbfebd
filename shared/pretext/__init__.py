"""The pretext tasks of stage 1: what each shows the network, and what it asks."""
