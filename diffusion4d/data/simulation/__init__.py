"""Scenarios for the simulator: cloth, soft bodies, chains, hands and piles, each a function of a random generator."""
