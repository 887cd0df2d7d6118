"""Generated worlds: deforming bodies, cameras and backgrounds with exact trajectories, visibility and images."""
