"""What builders take from the task instead of the config: the size of its vocabulary, how many images it has, …"""

from typing import Annotated

# The type of a keyword that the task fills in from its facts, by its name.  No config can set it.
FromTask = Annotated[int, "a number among the facts of the task"]
