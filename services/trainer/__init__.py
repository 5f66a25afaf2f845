"""The shared trainer: every model of the platform is trained by its one loop."""
