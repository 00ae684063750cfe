"""What every command needs: errors, options, JSON, facts about the machine, and what a disk may refuse."""

from typing import Any

Json = dict[str, Any]
"""A JSON object: a record, a metrics line, the settings of a run."""
