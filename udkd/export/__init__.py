"""Exports a trained student to files that need neither udkd nor, for ONNX, PyTorch; predicts for image files.

It may import udkd.training and what that may.
"""
