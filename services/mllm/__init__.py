"""The multimodal language model: what it is, how it reads and writes, and its server."""
