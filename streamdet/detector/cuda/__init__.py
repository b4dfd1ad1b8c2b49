"""The fixed path on CUDA devices: kernels, graphs, and copies that overlap with work.

kernels    suppression and RoIAlign in one launch each, in Triton
choose     whether they work here; plain torch where they do not
graph      a step as one CUDA graph for each number of frames
slots      pinned memory on its way to the device and back
runner     slots -> graph -> slots, on three streams
"""
