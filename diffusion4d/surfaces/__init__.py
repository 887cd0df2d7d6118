"""From the points of the anchor frame to something that can be drawn."""
