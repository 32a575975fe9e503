"""How networks are trained: programs, host loop, store."""
