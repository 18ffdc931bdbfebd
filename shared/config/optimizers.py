"""The optimizers that ``--<stage>.optimizer`` may name. One record each.

The table needs no torch, so the command line can check a name at once. A new optimizer is one
record here and, in ``shared/training/optim.py``, the function or class that makes it (``MAKERS``).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerKind:
    """What the code knows of an optimizer.

    Attributes:
        name: as options give it.
        slots: float32 values that it keeps for each parameter.
        decays_biases: whether weight decay also works on the biases of dense and convolutional
            layers; it always works on kernels, and never on batch norm.
        adapts_layers: whether each kernel's rate follows |weight| / |gradient|.
    """

    name: str
    slots: int
    decays_biases: bool = False
    adapts_layers: bool = False


OPTIMIZERS = {
    kind.name: kind
    for kind in (
        OptimizerKind("lars", slots=1, adapts_layers=True),
        OptimizerKind("sgd", slots=1, decays_biases=True),
        OptimizerKind("adamw", slots=2),
    )
}
