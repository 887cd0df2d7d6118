"""Deformable fields: a few moving nodes carry a dense surface, and its detail, under every hypothesis."""
