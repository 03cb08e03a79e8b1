"""One file an architecture: read its configuration, assemble it from blocks."""
