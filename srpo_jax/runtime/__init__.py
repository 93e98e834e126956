"""Machines: mesh and sharding, checkpoints, metrics and progress, multi-host start-up."""
