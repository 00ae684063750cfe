"""`python -m fggp` is the `fggp` command; `torchrun … -m fggp train …` runs it in several processes."""

from fggp.lab.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
