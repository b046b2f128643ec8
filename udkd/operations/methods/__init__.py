"""Other ways to teach, as pure functions: the methods that distillation papers are compared with, one file each."""
