"""Complete configurations for mmdet with image pyramids as backbones."""
