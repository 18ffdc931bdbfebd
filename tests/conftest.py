"""One thread per process: the test machines have two cores, and xdist or gloo tests share them."""

import torch

torch.set_num_threads(1)
