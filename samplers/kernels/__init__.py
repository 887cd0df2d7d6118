"""Fused kernels, each beside a plain twin with the same signature that says what it must compute."""
