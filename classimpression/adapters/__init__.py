"""Doors to other libraries: scikit-learn, Avalanche, ONNX, networks of your own."""
