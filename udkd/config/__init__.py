"""The recipe: every setting of a run, strictly typed and documented at its field.

It may import udkd.losses and the packages before it.
"""
