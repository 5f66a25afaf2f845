"""The diffusion tool: draws and edits images."""
