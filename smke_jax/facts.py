"""What builders take from other parts instead of the config: the size of the task's vocabulary, how many codes, …"""

from typing import Annotated

# The type of a keyword that is filled in from facts, by its name; no config can set it.  Networks get the facts of the
# task, terms those of the task and of the networks.
FromTask = Annotated[int, "a number among the facts"]
