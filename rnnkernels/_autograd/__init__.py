"""Derivatives of the recurrence: first and higher, forward mode, vmap, checkpointing."""
