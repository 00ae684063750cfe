"""`fggp export`: a trained network as a small file, a network file or ONNX."""
