"""Network files: whole networks for fggp's C library. docs/network-file.md describes them."""
