"""Programs compiled as users compile them, for what is true of optimized programs alone."""

import functools

import jax
from xla_flags import AS_USERS_DO

jit_as_users_do = functools.partial(jax.jit, compiler_options=AS_USERS_DO)
