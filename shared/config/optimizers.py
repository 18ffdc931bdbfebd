"""The optimizers that ``--<stage>.optimizer`` may name. One record each.

The table needs no torch, so the command line can check a name at once. A new optimizer is one
record here and, in ``shared/training/optim.py``, the function or class that the record names.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerKind:
    """What the code knows of an optimizer.

    Attributes:
        name: as options give it.
        maker: what builds it, in ``shared.training.optim``: ``maker(groups, momentum=...)``.
        slots: float32 values that it keeps for each parameter.
        decays_biases: whether weight decay also works on the biases of dense and convolutional
            layers; it always works on kernels, and never on batch norm.
        adapts_layers: whether each kernel's rate follows |weight| / |gradient|.
    """

    name: str
    maker: str
    slots: int
    decays_biases: bool = False
    adapts_layers: bool = False


OPTIMIZERS = {
    kind.name: kind
    for kind in (
        OptimizerKind("lars", "LARS", slots=1, adapts_layers=True),
        OptimizerKind("sgd", "NesterovSGD", slots=1, decays_biases=True),
        OptimizerKind("adamw", "fused_adamw", slots=2),
    )
}
