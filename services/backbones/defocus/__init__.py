"""De-focus Attention Networks (Zhu et al., 2024): causal one-dimensional models of images. Torch modules only."""
