"""The teacher's targets: frozen networks, ensembles, the cache, and what provides them to a step.

It may import udkd.config and what that may.
"""
