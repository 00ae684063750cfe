"""The lab: data, models, training, grids, reports and export, which the `fggp` command line runs.

The lab uses the library; the library never imports the lab. It needs `pip install 'fggp[lab]'`.
"""
