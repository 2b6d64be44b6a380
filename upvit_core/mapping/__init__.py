"""The map of a model: cuts measured around, and estimates of every other cut from them."""
