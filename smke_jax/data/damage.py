"""Photos that are no longer what they were when the dataset was prepared."""

import logging

from smke_jax.errors import UserError

log = logging.getLogger("smke_jax")

NAMED = 3  # damaged photos that the last message names


class DamagedImage(UserError):
    """A photo of a prepared dataset that can no longer be read; `name` and `reason` say which and why."""

    def __init__(self, name: str, reason: str):
        super().__init__(
            f"image {name!r} cannot be read ({reason}) though it could when the dataset was made: "
            "the data has been damaged since, run `smke prepare` again"
        )
        self.name, self.reason = name, reason


class Damages:
    """The damaged photos that one process has met in training, each counted and logged once.

    Args:
      dataset: what the last message calls the data.
      num_images: images of the training split. More than 1 % of them, and more than 10, may not be damaged.
    """

    def __init__(self, dataset: str, num_images: int):
        self.dataset, self.limit = dataset, max(10, num_images // 100)
        self._found: dict[int, DamagedImage] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, image: int, error: DamagedImage) -> None:
        """Counts photo number `image`.

        Raises:
          UserError: too many photos are damaged; the line has their number and names the first few.
        """
        if image in self._found:
            return
        self._found[image] = error
        log.warning("image %r is damaged (%s): training goes on without it", error.name, error.reason)
        self.check(list(self._found.values()))

    def check(self, errors: list[DamagedImage]) -> None:
        """Raises UserError where `errors`, one for each damaged photo, are too many."""
        if len(errors) > self.limit:
            first = ", ".join(f"{error.name!r} ({error.reason})" for error in errors[:NAMED])
            raise UserError(
                f"{len(errors)} images of {self.dataset} are damaged, more than the {self.limit} that training skips; "
                f"the first are {first}: restore the folder, or run `smke prepare` again"
            )
