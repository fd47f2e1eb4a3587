"""Speech → text and units: the maths of LLaMA-Omni, slow and obvious."""
