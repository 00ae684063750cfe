"""`fggp export`: a trained network as a small file or as ONNX."""
