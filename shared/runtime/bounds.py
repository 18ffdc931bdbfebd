"""The largest networks that options may ask for and that a ``meta.json`` may describe.

One table for both: what a stage may make, every reader takes.
"""

SIDE = 2**14  # pixels per side of an image
LAYERS = 16  # of a projection head
WIDTH = 2**15  # of a projection head's layers
CLASSES = 2**20
LEVEL = 10**9  # a channel's mean and its standard deviation, which are of pixels in [0, 1]
