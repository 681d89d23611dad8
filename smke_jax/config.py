"""The fields of every run, whatever is trained: seed, batch, steps, devices, optimiser, checkpoints, log.

What is trained stands in the config's parts (`smke_jax.parts`): each has the fields of its builder and no others.
The `ConfigDict` is locked: a key that does not exist is an error.
"""

from ml_collections import ConfigDict

SECTIONS = ("networks", "selections", "terms", "assets", "evaluators")  # {name: part} each


def base() -> ConfigDict:
    """A config without parts: set `task`, and name the parts of the SECTIONS."""
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
    c.exchange_dtype = "float32"  # of embeddings that losses send to other devices; bfloat16 rounds, and sends half
    c.attention = "auto"  # products | auto (by cuDNN on NVIDIA GPUs, in 16 bits)
    c.split_by_length = True  # captions run in up to three parts by length: less padding; dropout differs
    c.eval_batch_size = 256  # examples that evaluators and assets run at once, on all devices together
    c.profile_steps = ()  # (first, last): a profiler trace of these steps, in WORKDIR/profile

    c.task = ConfigDict()  # what a row is: a part of smke_jax.tasks
    c.networks = ConfigDict()  # {name: part of smke_jax.networks}; each brings its passes
    c.selections = ConfigDict()  # {name: part of smke_jax.selections}
    c.terms = ConfigDict()  # {name: part of smke_jax.objectives}
    c.assets = ConfigDict()  # {name: part of smke_jax.assets}
    c.evaluators = ConfigDict()  # {name: part of smke_jax.evaluators}

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # of smke_jax.training.optimizer.OPTIMIZERS: adamw | muon
    c.optimizer.learning_rate = 1e-4  # peak at a global batch of
    c.optimizer.reference_batch = 256  # in proportion to which it grows with batch_size; 0 takes it as it is
    c.optimizer.sqrt_above = 0  # from this batch on it grows with the square root of batch_size; 0: never
    c.optimizer.warmup_fraction = 0.1
    c.optimizer.schedule = "cosine"  # of smke_jax.training.optimizer.SCHEDULES: cosine | linear, after the warm-up
    c.optimizer.final_rate = 0.0  # learning rate of the last step
    c.optimizer.weight_decay = 0.01
    c.optimizer.decay_all = False  # of vectors, biases, [CLS] and embedding tables as well
    c.optimizer.betas = (0.9, 0.98)
    c.optimizer.eps = 1e-6
    c.optimizer.mu_dtype = "float32"  # of the first moment; bfloat16 saves two bytes per parameter
    c.optimizer.clip_norm = 0.0  # 0 clips nothing
    c.optimizer.layer_decay = 1.0  # factor on the rate of every encoder layer below the last; 1 is the same for all
    c.optimizer.lr_rules = ()  # ((regex on the parameter's path, factor), …), first match wins

    c.checkpoint = ConfigDict()
    c.checkpoint.every = 1000  # steps; the last step is always saved
    c.checkpoint.keep = 2  # newest ones kept, besides the best

    c.log = ConfigDict()
    c.log.every = 50  # steps
    c.log.tensorboard = False
    c.log.report = True  # WORKDIR/report.html and report.md, made anew at evaluations
    c.lock()
    for section in ("task", *SECTIONS):
        c[section].unlock()  # parts are added by name; their own fields are locked
    return c
