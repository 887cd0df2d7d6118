"""Motion that nobody here made: readers of animated meshes, and packs of actors that generated worlds take."""
