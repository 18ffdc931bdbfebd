"""Encoders, heads, and what is built of them."""
