"""The teacher's targets: frozen networks, ensembles, the cache, and the sources that a training step reads.

It may import udkd.config and the packages below it.
"""
