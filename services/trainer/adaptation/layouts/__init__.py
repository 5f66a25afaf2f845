"""Readers of public data sets, each in the layout in which it is published."""
