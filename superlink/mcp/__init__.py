"""Superlink's tools for agents, by the Model Context Protocol, whatever the transport."""
