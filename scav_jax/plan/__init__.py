"""What a training needs, before it runs: `scav plan --config vggsound --device v100`.

devices    accelerators: memory and peaks
costs      a step as work, and its FLOPs
memory     what it holds on each device
estimate   memory, FLOPs, time and input of a config
"""
