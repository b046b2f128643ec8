"""The recipe: every setting of a run, typed, documented at the field, strict. It may import udkd.losses and what that may."""
