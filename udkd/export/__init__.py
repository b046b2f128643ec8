"""A trained student as files that need neither udkd nor, for ONNX, PyTorch; predictions.

It may import udkd.training and what that may.
"""
