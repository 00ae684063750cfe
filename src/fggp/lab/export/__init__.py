"""A trained network as a file: the small file or ONNX."""
