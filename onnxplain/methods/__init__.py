"""The explanation methods."""
