"""Network files: whole networks for fggp's C library, without PyTorch. docs/network-file.md describes them."""
