"""The lab: data, models, the training loop and pictures that the `fggp` command line runs.

The lab uses the library; the library never imports the lab. It needs `pip install 'fggp[lab]'`.
"""
