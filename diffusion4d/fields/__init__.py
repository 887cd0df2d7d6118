"""Deformable fields: a few moving nodes carry a dense surface under every hypothesis."""
