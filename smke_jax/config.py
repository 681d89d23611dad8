"""Every field of every config, with its default and meaning.  Other configs start from `base()` and change a few.

    smke train --config=configs/flickr8k.py --workdir=runs/flickr8k [--config.batch_size=512 …]

The `ConfigDict` is locked: a key that does not stand here is an error.
"""

from ml_collections import ConfigDict

from smke_jax.errors import UserError


def base() -> ConfigDict:
    c = ConfigDict()
    c.seed = 42
    c.batch_size = 256  # global: over all devices of all hosts
    c.total_steps = 0  # give either this
    c.epochs = 0.0  # or this
    c.num_devices = 0  # 0 takes all; fewer only on a single host
    c.sharding = "replicated"  # of smke_jax.parallel.rules.RULES; fsdp splits parameters and optimiser state
    c.fsdp_size = 0  # fsdp: devices that share one copy of the state; 0 is all of them
    c.micro_batch = 0  # most examples of which a device holds activations at once, 0 all; losses see the whole batch
    c.loss_impl = "auto"  # how losses compare rows of different devices: gather | ring | auto (ring for large batches)
    c.profile_steps = ()  # (first, last): a profiler trace of these steps, in WORKDIR/profile

    # What is computed: passes make representations, terms are losses on them (smke_jax/passes, smke_jax/objectives).
    c.passes = ("teacher", "student")
    c.ema_decay = 0.995  # per step, of the student's moving average that the pass 'momentum' runs with
    # {name: its arguments}; besides them `weight` (1.0), `final_weight` (reached linearly at the end of training)
    # and `type` (when the name is not the type).
    c.terms = ConfigDict()

    c.data = ConfigDict()
    c.data.source = "prepared"  # of smke_jax.data.sources.SOURCES: prepared | scenes
    c.data.dir = ""  # folder written by `smke prepare`
    c.data.split = "train"
    c.data.unit = "pairs"  # pairs: every caption is a row; images: one caption drawn per image and epoch
    c.data.in_memory = False  # decode every image once and keep it: for small sets
    c.data.tokenizer = ""  # folder with vocab.txt or tokenizer.json; '' trains a WordPiece on the training captions
    c.data.vocab_size = 30522  # most tokens of a vocabulary trained here
    c.data.max_length = 64  # tokens per caption, [CLS] and [SEP] included
    c.data.views = "student_teacher"  # of smke_jax.data.transforms.VIEWS
    c.data.crop_scale = (0.9, 1.0)  # area of the random crop
    c.data.crop_ratio = (3 / 4, 4 / 3)  # its aspect ratio
    c.data.flip = 0.5  # probability of mirroring
    c.data.jitter = 0.0  # strength of brightness, contrast and saturation jitter on the student's view
    c.data.grayscale = 0.0  # probability of dropping colour
    c.data.teacher_view = "shared"  # of smke_jax.data.transforms.TEACHER_VIEWS: shared | same | independent | fixed
    c.data.threads = 2  # reading, decoding, cropping

    c.student = ConfigDict()
    c.student.dtype = "float32"  # of activations; bfloat16 on accelerators. Parameters and losses stay fp32
    # The whole student from what `smke export` wrote of another run, whose fields below have to be the same; the terms'
    # temperatures come along. 'random' where the parts below start by themselves.
    c.student.init = "random"
    c.student.remat = "none"  # of smke_jax.models.layers.REMAT: what the backward pass computes again to save memory
    c.student.head_dim = 0  # width of the head: the classes where the teacher's logits are learned; 0 its features
    c.student.token_types = True  # every token is told its modality by a vector added to it,
    c.student.token_types_at = "after"  # before the towers' first block or after their last: before | after
    c.student.token_type_scale = 1e-5  # times a learned scale that starts here; None adds it as it is
    c.student.image = ConfigDict()
    c.student.image.init = "random"  # or what `smke convert` wrote of a Data2Vec2 image encoder
    c.student.image.image_size = 224
    c.student.image.patch_size = 16
    c.student.image.width = 768
    c.student.image.depth = 6
    c.student.image.num_heads = 12
    c.student.image.mlp_dim = 3072
    c.student.image.norm_order = "post"
    c.student.image.norm_eps = 1e-6
    c.student.image.activation = "gelu"
    c.student.image.dropout = 0.0
    c.student.image.token_drop = 0.0  # share of patches left out in training (FLIP)
    c.student.image.init_std = 0.02  # 0 scales by fan-in: for training from scratch
    c.student.text = ConfigDict()
    c.student.text.init = "random"  # or what `smke convert` wrote of a BERT
    c.student.text.width = 768
    c.student.text.depth = 6
    c.student.text.num_heads = 12
    c.student.text.mlp_dim = 3072
    c.student.text.max_positions = 512
    c.student.text.norm_order = "post"
    c.student.text.norm_eps = 1e-12
    c.student.text.activation = "gelu"
    c.student.text.dropout = 0.0
    c.student.text.init_std = 0.02
    c.student.shared = ConfigDict()
    c.student.shared.type = "transformer"  # of smke_jax.models.shared.SHARED: transformer | mlp
    c.student.shared.depth = 1  # transformer
    c.student.shared.num_heads = 12
    c.student.shared.mlp_dim = 3072
    c.student.shared.norm_eps = 1e-6
    c.student.shared.activation = "gelu"
    c.student.shared.layer_scale = 0.2
    c.student.shared.dropout = 0.0
    c.student.shared.init_std = 0.02

    c.teacher = ConfigDict()
    # What `smke convert` or `smke export` wrote, which says what model it holds (the fields below then come from it),
    # or 'random' for a teacher of random weights, to try code without a file; '' where no pass uses a teacher.
    c.teacher.checkpoint = ""
    c.teacher.cache = False  # its feature of every image once instead of in every step; needs data.teacher_view=fixed
    c.teacher.type = "beit"  # of smke_jax.models.teachers.TEACHERS
    c.teacher.final_norm = True  # beit: False takes the last block's output un-normalised
    c.teacher.image_size = 224
    c.teacher.patch_size = 16
    c.teacher.width = 768
    c.teacher.depth = 12
    c.teacher.num_heads = 12
    c.teacher.mlp_dim = 3072
    c.teacher.norm_eps = 1e-6
    c.teacher.activation = "gelu"
    c.teacher.mean = (0.485, 0.456, 0.406)  # of the pixels in [0, 1] that it was trained with
    c.teacher.std = (0.229, 0.224, 0.225)
    c.teacher.dtype = "float32"
    c.teacher.layer_scale = 0.1  # beit
    c.teacher.shared_bias = True  # beit: one relative position table for all blocks
    c.teacher.num_classes = 0  # beit, fine-tuned: of its classifier, which reads the mean of the patches
    c.teacher.norm_order = "post"  # data2vec2
    c.teacher.token_drop = 0.0  # data2vec2, while it is trained: share of patches left out
    c.teacher.init_std = 0.02
    # Logits for a teacher without a classifier, to try recipes that learn a classifier's: the cosines of its [CLS]
    # with so many fixed random directions, over a temperature. 0 has none.
    c.teacher.stand_in_classes = 0
    c.teacher.stand_in_temperature = 0.1
    c.quantizer = ConfigDict()  # the passes 'autoencoder', which learns a codebook, and 'quantizer', which uses it
    c.quantizer.run = ""  # quantizer: the run directory of an autoencoder; 'random' to try code without one
    c.quantizer.num_codes = 1024
    c.quantizer.code_dim = 16
    c.quantizer.masked = 0.9  # autoencoder: share of the patches that the decoder does not see
    c.projector = ()  # widths of the projector that self-supervised training puts on the encoder

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # of smke_jax.training.optimizer.OPTIMIZERS: adamw | muon
    c.optimizer.learning_rate = 1e-4  # peak at a global batch of
    c.optimizer.reference_batch = 256  # in proportion to which it grows with batch_size; 0 takes it as it is
    c.optimizer.warmup_fraction = 0.1
    c.optimizer.weight_decay = 0.01
    c.optimizer.betas = (0.9, 0.98)
    c.optimizer.eps = 1e-6
    c.optimizer.mu_dtype = "float32"  # of the first moment; bfloat16 saves two bytes per parameter
    c.optimizer.clip_norm = 0.0  # 0 clips nothing
    c.optimizer.lr_rules = ()  # ((regex on the parameter's path, factor), …), first match wins; factor 0 freezes

    c.eval = ConfigDict()
    c.eval.every = 0  # steps; 0 evaluates only after the last step
    c.eval.split = "dev"
    c.eval.level = "out"  # representation used for retrieval: fc1 | out | head
    c.eval.batch_size = 256

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps; the last step is always saved
    c.checkpoint.keep = 2  # newest ones kept, besides the best

    c.log = ConfigDict()
    c.log.every = 50  # steps
    c.log.tensorboard = False
    c.lock()
    c.terms.unlock()  # terms are added by name; their arguments are checked when the recipe is built
    return c


def towers(c: ConfigDict, **fields) -> None:
    """Sets fields of both towers and the shared block at once, where they have them; `depth` is that of the towers."""
    for part, own in ((c.student.image, ()), (c.student.text, ()), (c.student.shared, ("depth",))):
        part.update({k: v for k, v in fields.items() if k in part and k not in own})


def thesis() -> ConfigDict:
    """What the image-text runs of the thesis share: data, pretrained parts, two GPUs, 7 epochs (spec 0.3-0.6)."""
    c = base()
    c.batch_size = 512
    c.total_steps = 44_636
    c.data.dir = "data/coco_cc"
    c.student.dtype = c.teacher.dtype = "bfloat16"
    c.student.image.init = "weights/data2vec2-base"
    c.student.text.init = "weights/bert-base-uncased"  # its vocabulary comes along
    c.teacher.checkpoint = "weights/beitv2-base-pt1k"
    c.eval.every = c.checkpoint.every = 6_376  # an epoch
    return c


def split_variant(variant: str, known: tuple[str, ...] = ()) -> tuple[str, str]:
    """('before', 'flickr8k') of 'before,flickr8k': one of `known`, and one of the FORMS; either may be left out."""
    kind, _, form = variant.rpartition(",")
    if form in known and not kind:
        kind, form = form, ""
    if kind not in ("", *known) or form not in ("", *FORMS):
        kinds = f"{', '.join(known)}, alone or with a form (as {known[0]},smoke); forms: " if known else ""
        raise UserError(f"unknown variant {variant!r}: there are {kinds}{', '.join(FORMS)}")
    return kind, form


def variant_of(c: ConfigDict, form: str) -> ConfigDict:
    """`c` as it is for '', or in one of the FORMS; a config with variants of its own calls `split_variant` first."""
    _, form = split_variant(form)
    return FORMS[form](c) if form else c


def flickr8k(c: ConfigDict) -> ConfigDict:
    """The same recipe with a small student on the photos of Flickr8k: minutes on two cores.

    The image tower starts from the teacher that configs/teacher_flickr8k.py makes of the photos alone, as in the
    thesis every student starts from pretrained towers.
    """
    c.batch_size, c.total_steps, c.epochs = 256, 400, 0.0
    c.data.update(source="prepared", dir="data/flickr8k", split="train", tokenizer="", unit="images", in_memory=True)
    c.data.update(vocab_size=4000, max_length=20, crop_scale=(0.35, 1.0), jitter=0.4)
    towers(c, init="random", width=192, num_heads=3, mlp_dim=384)
    towers(c, activation="gelu_tanh", norm_order="pre", init_std=0.0)
    c.student.image.update(image_size=96, patch_size=16, depth=4, token_drop=0.5, init=FLICKR8K_TEACHER)
    c.student.text.update(depth=2, max_positions=64, dropout=0.2)
    c.teacher.checkpoint = FLICKR8K_TEACHER if "teacher" in c.passes else ""
    c.quantizer.update(num_codes=128, code_dim=8)
    _stand_in(c)
    c.student.dtype = c.teacher.dtype = "float32"
    for term in c.terms.values():
        if "bank_size" in term:
            term.bank_size = min(term.bank_size, 4096)
    c.optimizer.update(name="muon", learning_rate=2e-3, weight_decay=0.5, clip_norm=1.0)
    c.eval.update(every=0, split="dev")
    c.checkpoint.every = 100
    c.log.every = 25
    return c


def smoke(c: ConfigDict) -> ConfigDict:
    """The same recipe on the built-in scenes, small enough for two steps in a test."""
    c.batch_size, c.total_steps, c.epochs = 16, 2, 0.0
    c.student.init = "random"
    c.data.update(source="scenes", dir="", split="train", tokenizer="", vocab_size=300, max_length=12, in_memory=False)
    towers(c, init="random", image_size=32, patch_size=16, width=32, depth=1, num_heads=2, mlp_dim=48)
    c.teacher.update(image_size=32, patch_size=16, width=32, depth=1, num_heads=2, mlp_dim=48)
    c.teacher.checkpoint = "random" if "teacher" in c.passes else ""
    c.quantizer.update(num_codes=24, code_dim=4, run="random" if "quantizer" in c.passes else "")
    _stand_in(c)
    c.projector = c.projector and (24, 24)
    for term in c.terms.values():
        if "bank_size" in term:
            term.bank_size = 40
    c.eval.split, c.eval.batch_size = "gallery", 64
    c.log.every = 1
    return c


def _stand_in(c: ConfigDict) -> None:
    """Classes for a teacher that has none, where a recipe learns a classifier's logits."""
    if "kl" in c.terms:
        c.teacher.update(type="beit", num_classes=0, stand_in_classes=256)
        c.student.head_dim = c.teacher.stand_in_classes


FLICKR8K_TEACHER = "runs/teacher_flickr8k/export"
FORMS = {"smoke": smoke, "flickr8k": flickr8k}
