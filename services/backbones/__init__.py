"""Vision backbones: torch modules only."""
