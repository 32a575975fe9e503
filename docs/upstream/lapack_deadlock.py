"""Two batched QR decompositions on XLA's CPU pool of two threads wait for each other, for ever.

    NPROC=2 OPENBLAS_NUM_THREADS=1 JAX_PLATFORMS=cpu python lapack_deadlock.py

JAX alone. It counts to 99 where nothing hangs.
"""

import sys

import jax
import jax.numpy as jnp

num_decompositions, batch, size = map(int, sys.argv[1:] or (2, 16, 128))
matrices = jax.random.normal(jax.random.key(0), (num_decompositions, batch, size, size))
decompose = jax.jit(lambda ms: [jnp.linalg.qr(m + 1) for m in ms])
for i in range(100):
    jax.block_until_ready(decompose(matrices))
    print(i, flush=True)
