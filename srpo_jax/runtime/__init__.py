"""Machines: mesh and sharding, checkpoints, metrics and progress, multi-host start-up, errors.

May import: nothing of this package. Imported by: every room.
"""
