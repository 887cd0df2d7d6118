"""Detail: offsets of a surface in its own frames, taken from a mesh, read off a depth map, or sampled."""
