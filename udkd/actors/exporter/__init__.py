"""A trained student as files that need neither udkd nor, for ONNX, PyTorch."""

from udkd.actors.exporter.export import LIMIT, Exported, export

__all__ = ["LIMIT", "Exported", "export"]
