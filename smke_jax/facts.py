"""What builders take from elsewhere than the config: the size of the task's vocabulary, how many codes, …"""

from collections.abc import Mapping
from typing import Annotated, Any

# The type of a keyword that is filled in from facts, by its name; no config can set it.  Networks get the facts of the
# task, terms those of the task and of the networks.
FromTask = Annotated[int, "a number among the facts"]

# The same of the names of a task's classes.
NamesFromTask = Annotated[tuple[str, ...], "names among the facts"]

# The same of a task's ids, such as those of special tokens.
NumbersFromTask = Annotated[tuple[int, ...], "numbers among the facts"]

# The type of the keyword `described`: what a network's file said of it when the run began; empty when it begins.
Described = Annotated[Mapping[str, Any] | None, "what a file said"]
