"""Exports trained students to files that run without udkd (ONNX also without PyTorch), and classifies image files.

It may import udkd.training and the packages below it.
"""
