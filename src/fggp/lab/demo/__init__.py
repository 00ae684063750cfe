"""`fggp demo`: networks for handwritten digits, trained, pruned and shipped in a minute."""
