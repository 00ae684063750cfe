"""Network files: whole networks for fggp's C library, described without PyTorch. docs/network-file.md describes them."""
