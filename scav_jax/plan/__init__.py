"""What a training needs, before it runs: `scav plan --config vggsound --device v100`.

devices    accelerators: memory and peaks
estimate   memory, FLOPs, time and input of a config
"""
