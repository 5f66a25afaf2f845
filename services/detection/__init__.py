"""The detection decoder: Grounding-DINO style, driven by link embeddings."""
