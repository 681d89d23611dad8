"""The sizes in which two-stage compression comes (configs/motis.py): what its teacher and its students are made of.

The stages are those of the config.  A form says which towers they train, on what, and for how long.  The teacher of the
forms `COMPRESSIONS[""]` is towers with a projection of each modality; that of `COMPRESSIONS["s_smke"]` is one network,
whose towers meet in a shared block.  The students of both are towers with projections.
"""

from typing import Any

from ml_collections import ConfigDict

from smke_jax.forms import Flickr8k, Scenes, Smoke, Thesis
from smke_jax.networks.start import RANDOM
from smke_jax.parts import part

CLIP = "weights/clip-vit-base-patch32"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIDES = ("image", "text")


class Compression:
    """The paper's: CLIP ViT-B/32, a ViT-S/16 and the first layers of the text tower (spec A.1-A.3).

    teacher:  where the teacher begins: a file, or an earlier stage
    teachers_run: the config of that stage
    features: what frozen networks make of the teacher's view of a photo, once for each stage
    temperature: of the scores that are learned, about what the teacher's contrast came to
    kept:     the folder where that is stored, for all stages; '' is one of each run
    searched: what retrieval compares in the stage `image`: the image student's, and the tuned teacher's of captions
    """

    form = Thesis()
    teacher = CLIP
    teachers_run = ""
    features = ("clip/feature",)
    kept = ""
    searched = SIDES
    temperature = 0.01
    projection = {"width": 512, "bias": False}
    depth = 6  # of the text student
    epoch = 5_904  # steps of COCO's 566,747 pairs
    narrow: dict = {}  # what is smaller in it besides

    def run(self, kind: str) -> ConfigDict:
        """A config without parts: of 'tune', the teacher's tuning; 'first' and 'second', the students' stages."""
        # 84 pairs do not divide over 8 devices; an epoch of CC3M.  Then 5 epochs of COCO's pairs.
        batch, steps = {"first": (88, 34_090), "second": (96, 29_518), "tune": (96, 29_518)}[kind]
        c = self.form.run(batch_size=batch, total_steps=steps, epoch=self.epoch)
        rate = 1e-5 if kind == "tune" else 3e-4  # the paper says none for the teacher
        c.optimizer.update(learning_rate=rate, weight_decay=0.1, clip_norm=1.0, reference_batch=0)
        if kind == "first":
            c.optimizer.warmup_fraction = 10_000 / steps
        return c

    def pairs(self) -> ConfigDict:
        """The task of stage 2: COCO's pairs; frozen towers see the whole photo, and so are stored."""
        return part("pairs", data=("data/coco",), teacher_view="fixed", **self._text(), **self._views())

    def images(self) -> ConfigDict:
        """The first pool of stage 1: photos alone."""
        return part("images", data=("data/cc3m",), teacher_view="shared", **self._views())

    def captions(self) -> ConfigDict:
        """The second pool of stage 1: captions alone."""
        return part("captions", data=("data/cc3m",), **self._text())

    def _text(self) -> dict:
        return {"tokenizer": f"{CLIP}/tokenizer", "vocab_size": 49_408, "max_length": 77}

    def _views(self) -> dict:
        return {"crop_scale": (0.5, 1.0)}

    def frozen(self, start: str, sides: tuple[str, ...] = SIDES) -> dict[str, ConfigDict]:
        """{name: network} of the teacher as it is in `start`: 'teacher_image/out', 'teacher_text/out', or one of them.

        Of a text tower by itself the feature is 'teacher_words/feature'.
        """
        networks = self._teacher_images(start) if "image" in sides else {}
        if "text" in sides:
            networks["teacher_words"] = self._teacher_words(start, makes="teacher_words")
        networks["teacher"] = self.projections(
            image=self.features if "image" in sides else (),
            text=("teacher_words/feature",) if "text" in sides else (),
            **{f"{side}_start": start for side in sides},
            makes="teacher",
            trained="none",
        )
        return networks

    def tuned(self, start: str, side: str) -> tuple[dict[str, ConfigDict], dict[str, ConfigDict]]:
        """({name: network}, {name: asset}) of the teacher, of which one `side` is trained, or both ('joint').

        They make 'image/out' and 'text/out'.
        """
        images = self._teacher_images(start, trained=side != "text")
        networks = {
            **images,
            "words": self._teacher_words(start, trained=side != "image"),
            "student": self.projections(
                image=self.features, image_start=start, text_start=start, trained="both" if side == "joint" else side
            ),
        }
        learned = any(own.get("trained", False) for own in images.values())
        return networks, {} if learned else {"photos": self.photos()}

    def tuned_text(self, start: str) -> dict[str, Any]:
        """Fields of the image student's projections: those of the tuned teacher's captions, which come along."""
        return {"text": ("teacher_words/feature",), "text_start": start}

    def photos(self) -> ConfigDict:
        """The asset of `features`."""
        return part("stored_features", of=self.features, evaluated=(self.form.held_out,), folder=self.kept, half=True)

    def _teacher_images(self, start: str, *, trained: bool = False) -> dict[str, ConfigDict]:
        """{name: image tower}; a trained one reads the student's view."""
        image = "image" if trained else "teacher_image"
        return {"clip": part("image_tower", start=start, makes="clip", image=image, trained=trained, dtype="bfloat16")}

    def _teacher_words(self, start: str, *, trained: bool = False, **fields: Any) -> ConfigDict:
        return self._words(start=start, trained=trained, **fields)

    def _words(self, **fields: Any) -> ConfigDict:
        return part("text_tower", pool="cls", dtype="bfloat16", **fields)

    def photo(self, start: str = "", *, trained: bool = True, **fields: Any) -> ConfigDict:
        """The image student, from ImageNet-21k's classes; it sees what the teacher sees."""
        given = {"start": start or "weights/vit-small-augreg-in21k", "mean": CLIP_MEAN, "std": CLIP_STD}
        return part("image_tower", trained=trained, dtype="bfloat16", **given | fields)

    def words(self, start: str, depth: int | None = None) -> ConfigDict:
        """The text student: the first layers of the teacher's, or what stage 1 made of them."""
        return self._words(start=start, depth=depth or self.depth, **self.narrow)

    def projected_words(self) -> ConfigDict:
        """The text student's projection as it begins stage 1: the teacher's."""
        return self.projections(image=(), text_start=self.teacher)

    def projections(self, **fields: Any) -> ConfigDict:
        """Projections into the space that all towers share."""
        return part("projections", **self.projection | fields)

    def retrieval(self, best: str, **fields: Any) -> ConfigDict:
        """Retrieval on the dev split after every epoch; checkpoints are ranked by the scalar `best`."""
        return self.form.retrieval(best=best, every=self.epoch, **fields)

    def place(self, stage: str) -> str:
        """The folder of a stage: in the run's own, or one that all variants of the form share."""
        return stage


class OnPhotos(Compression):
    """Flickr8k's photos; the teacher is configs/lit.py's, whose frozen towers see every photo and a close-up of it.

    The image student is the first 4 layers of DINOv2 at 98 px, the text student the first 3 of the teacher's 6, with a
    third of the channels in its table of words, which is half of the teacher's text tower.
    """

    form = Flickr8k()
    teacher = "stage:runs/lit_flickr8k"
    teachers_run = "lit.py"
    features = tuple(f"{name}/feature" for name in form.image_towers())
    folder = "runs/motis_flickr8k"
    kept = f"{folder}/features"
    temperature = 0.05
    projection = {"width": 512}
    depth = 3
    narrow = {"word_width": 128}

    def run(self, kind: str) -> ConfigDict:
        batch, steps, rate = {"tune": (480, 75, 2e-4), "first": (128, 300, 5e-4), "second": (128, 240, 3e-4)}[kind]
        c = self.form.tuning()
        c.batch_size, c.total_steps, c.checkpoint.every = batch, steps, steps
        c.optimizer.update(learning_rate=rate, weight_decay=0.1)
        c.optimizer.lr_rules = (("^(photo|words)/", 0.2), ("logit_scale", 10.0))
        return c

    def pairs(self) -> ConfigDict:
        task = self.form.captioned()
        task.teacher_view = "fixed"
        return task

    def images(self) -> ConfigDict:
        return self.form.images(teacher_view="fixed")

    def captions(self) -> ConfigDict:
        return part("captions", data=("data/flickr8k",), tokenizer="weights/minilm/tokenizer", max_length=24)

    def _teacher_images(self, start: str, *, trained: bool = False) -> dict[str, ConfigDict]:
        return self.form.image_towers()

    def _words(self, **fields: Any) -> ConfigDict:
        return part("text_tower", **{"dropout": 0.1} | fields)

    def photo(self, start: str = "", *, trained: bool = True, **fields: Any) -> ConfigDict:
        given = {"depth": 4, "image_size": 98, "pools": ("cls", "mean"), "token_drop": 0.25}
        return part("image_tower", start=start or "weights/dinov2", trained=trained, **given | fields)

    def place(self, stage: str) -> str:
        return f"{self.folder}/{stage}"


class Drawn(Compression):
    """What the two forms of drawn scenes share: the teacher is configs/lit.py's, trained as the first stage."""

    teacher = "stage:lit"
    teachers_run = "lit.py"
    features = ("scenes/feature",)
    projection = {"width": 512}
    temperature = 0.05
    depth = 1

    def run(self, kind: str) -> ConfigDict:
        c = self.form.run()
        if self.form.name == "scenes":
            c.total_steps = {"tune": 200, "first": 400, "second": 400}[kind]
        return c

    def pairs(self) -> ConfigDict:
        return self.form.pairs(unit="images", teacher_view="fixed")

    def images(self) -> ConfigDict:
        return self.form.images(teacher_view="fixed")

    def captions(self) -> ConfigDict:
        task = self.pairs()
        return part(
            "captions", source=task.source, tokenizer="", vocab_size=task.vocab_size, max_length=task.max_length
        )

    def _teacher_images(self, start: str, *, trained: bool = False) -> dict[str, ConfigDict]:
        return self.form.image_towers()

    def _words(self, **fields: Any) -> ConfigDict:
        return part("text_tower", **fields)

    def photo(self, start: str = "", *, trained: bool = True, **fields: Any) -> ConfigDict:
        # It is as wide as the teacher's; what else there is of it stands in the file of stage 1.
        sizes = {
            "image_size": 32,
            "patch_size": 16,
            "width": self.form.width,
            "depth": 2,
            "num_heads": 2,
            "mlp_dim": 64,
        }
        model = None if start else part("vit", **sizes)
        return part("image_tower", start=start or "random", model=model, trained=trained, **fields)


class OnScenes(Drawn):
    """Drawn scenes, minutes on two cores."""

    form = Scenes()


class Tiny(Drawn):
    """Two steps of every stage."""

    form = Smoke()


class SharedBlock(Compression):
    """What all forms share whose teacher is an S-SMKE: a network `two_towers`, as `network` makes it.

    One side of the teacher is tuned, its image or its text tower, while the shared block is frozen with the other side:
    the block belongs to both, and the frozen side has to stay what it is.  So the block, the vectors of the token types
    and the head are in every stage what the teacher's own training made of them.  The frozen tower runs in the step,
    forward alone.

    The students' projections have no counterpart in such a teacher and begin at random.  The tuned text side stands
    beside the image student as a whole network: retrieval compares the two, and the export of the stage `image` embeds
    images alone.  Stage 1 has the photos, or the captions, of pairs: the teacher has towers for both.
    """

    features = ("teacher_image/out",)
    kept = ""  # the tuned teacher makes other embeddings than the untuned one: each run keeps its own
    searched = ("image", "teacher_text")
    temperature = 0.05

    def network(self) -> ConfigDict:
        """The student of the run that the teacher is, of random weights."""
        return self.form.student(token_types=False)

    def images(self) -> ConfigDict:
        return self._pool()

    def captions(self) -> ConfigDict:
        return self._pool()

    def _pool(self) -> ConfigDict:
        return self.pairs()

    def frozen(self, start: str, sides: tuple[str, ...] = SIDES) -> dict[str, ConfigDict]:
        return {"teacher": self._begun(start, frozen=True, makes="teacher")}

    def tuned(self, start: str, side: str) -> tuple[dict[str, ConfigDict], dict[str, ConfigDict]]:
        return {"student": self._begun(start, trained=(f"^{side}_",))}, {}

    def _begun(self, start: str, **fields: Any) -> ConfigDict:
        network = self.network()
        network.update(start=start, image_start=RANDOM, text_start=RANDOM, **fields)
        return network

    def tuned_text(self, start: str) -> dict[str, Any]:
        return {"text": ()}

    def photos(self) -> ConfigDict:
        return part("stored_features", of=self.features, half=True)

    def projected_words(self) -> ConfigDict:
        return self.projections(image=())


class SmkeOfTheThesis(SharedBlock):
    """The thesis' S-SMKE; a ViT-S/16 and the first 3 of its 6 layers of BERT."""

    teacher = "stage:s_smke"
    teachers_run = "s_smke.py"
    projection = {"width": 768}
    depth = 3

    def network(self) -> ConfigDict:
        return self.form.student()

    def _pool(self) -> ConfigDict:
        task = self.pairs()
        task.data = ("data/cc3m",)
        return task

    def _text(self) -> dict:
        return {"tokenizer": "weights/bert-base-uncased/tokenizer"}

    def photo(self, start: str = "", *, trained: bool = True, **fields: Any) -> ConfigDict:
        return super().photo(start, trained=trained, **{"mean": None, "std": None} | fields)


class SmkeOnPhotos(SharedBlock, OnPhotos):
    """Flickr8k's photos; the teacher is configs/s_smke_pretrained.py's.

    The students are the first 2 of its 6 layers of DINOv2 and the first 3 of its 6 of MiniLM.
    """

    teacher = "stage:runs/s_smke_pretrained_flickr8k"
    teachers_run = "s_smke_pretrained.py"
    folder = "runs/motis_s_smke_flickr8k"
    projection = {"width": 384}

    def network(self) -> ConfigDict:
        return self.form.pretrained(head=384)

    def run(self, kind: str) -> ConfigDict:
        c = super().run(kind)
        if kind == "tune":  # both towers run in a step
            c.batch_size, c.total_steps, c.checkpoint.every = 128, 240, 240
            c.optimizer.lr_rules = (("_encoder/", 0.1), ("logit_scale", 10.0))
        return c

    def photo(self, start: str = "", *, trained: bool = True, **fields: Any) -> ConfigDict:
        return super().photo(start, trained=trained, **{"depth": 2} | fields)


class SmkeDrawn(SharedBlock, Drawn):
    """What the two forms of drawn scenes share: the teacher is configs/scenes.py's, trained as the first stage."""

    teacher = "stage:s_smke"
    teachers_run = "scenes.py"


class SmkeOnScenes(SmkeDrawn, OnScenes):
    """Drawn scenes, minutes on two cores."""

    projection = {"width": OnScenes.form.width}


class SmkeTiny(SmkeDrawn, Tiny):
    """Two steps of every stage."""

    projection = {"width": Tiny.form.width}


COMPRESSIONS = {
    kind: {own.form.name: own for own in forms}
    for kind, forms in {
        "": (Compression(), OnPhotos(), OnScenes(), Tiny()),
        "s_smke": (SmkeOfTheThesis(), SmkeOnPhotos(), SmkeOnScenes(), SmkeTiny()),
    }.items()
}  # {teacher: {form: sizes}}
