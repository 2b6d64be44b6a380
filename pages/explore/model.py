"""Model: what is open, drawn and counted; and the way to open another."""

from pages.shared import frame

with frame.page("Model", "What is open: its parts, its size, and what it says about a few images."):
    pass
