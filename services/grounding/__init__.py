"""What the decoders that ground phrases in an image share: link embeddings ask, image tokens answer with boxes."""
