"""The encoders of a finished run on their own, beside what they began with: `smke evaluate --evaluator=encoders`.

Source: the thesis' comparison of unimodal and aligned encoders (spec 3 and 4), with probes in place of fine-tuning.
"""
