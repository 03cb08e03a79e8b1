"""Block-wise weight-only quantization in numpy."""
