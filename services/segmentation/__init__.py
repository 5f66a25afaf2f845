"""The segmentation decoder: mask queries over a pixel decoder, driven by link embeddings."""
