import pytest

import network_files
from c_library import installed


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """A folder of network files, with inputs and expected outputs."""
    folder = tmp_path_factory.mktemp("networks")
    network_files.write_all(folder)
    return folder


@pytest.fixture(scope="session")
def prefix():
    """The folder of the library, installed for this processor."""
    return installed("native")
