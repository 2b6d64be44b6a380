"""From scores and wishes to a plan: pure list and array work, no model, no torch."""
