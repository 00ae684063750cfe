"""The prunable weights: which they are, where their parts lie, and how a selection reads them."""
