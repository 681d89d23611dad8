"""The last rung of the ladder, CTL with a bank of the teacher's features: the final model, configs/s_smke.py.

    smke train --config=configs/ctl_bank.py --workdir=runs/ctl_bank --config.task.data=DATA

The paper's setting: configs/ctl.py with 65,536 earlier features of the teacher as further negatives, and the teacher's
[CLS] without its last LayerNorm.  The thesis' code compares with the features of the same GPU (256) and the bank, its
text, followed here, with those of all GPUs and the bank; it starts with a bank of random vectors that count, here
`--config.terms.target_itc.random_bank=True`.

Published: COCO 5k image to text 53.54 / 81.1 / 89.52, text to image 35.65 / 66.0 / 77.77; Flickr30K 70.9 / 92.1 / 96.0
and 52.72 / 80.2 / 87.46; ImageNet zero-shot 37.0; 11.2 h.
Measured here: see configs/ladder.md.
"""

import runpy
from pathlib import Path

get_config = runpy.run_path(str(Path(__file__).with_name("s_smke.py")))["get_config"]
