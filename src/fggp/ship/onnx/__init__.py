"""Networks from ONNX files: `from_onnx` reads one into the description of a network file."""
