"""Any Flax or Equinox cell as a `Cell`; weights from Flax and to it, and from PyTorch."""

from rnn_jax.bridge.equinox import from_equinox
from rnn_jax.bridge.flax_params import from_flax, to_flax
from rnn_jax.bridge.linen import from_linen
from rnn_jax.bridge.nnx import from_nnx
from rnn_jax.bridge.pytorch import from_pytorch

__all__ = ["from_equinox", "from_flax", "from_linen", "from_nnx", "from_pytorch", "to_flax"]
