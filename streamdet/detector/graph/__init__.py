"""Faster R-CNN with fixed capacities: the shape of every tensor is known before a picture arrives.

`pipeline.py` keeps only the proposals and detections that pass; this package keeps every slot and gives empty slots a
score below zero. It never reads a value back from the device, so a GPU never waits for the host, and all of it can be
captured as one CUDA graph (`capture`). On a CPU it is slower than `pipeline.py`.

In the order of the data:

    pixels    bytes as the decoder left them, RGB or YUV 4:2:0 -> RGB
    canvas    RGB -> one normalised batch
    propose   feature maps -> P slots of proposals for each frame
    align     feature maps, proposals -> a small feature map for each slot
    finish    scores, boxes -> D slots of detections for each frame
    step      runs all of these: one tensor in, one tensor out
    runner    runs steps one operation at a time; cuda_runner runs them as captured graphs
    detector  pictures -> runner -> detections

`suppress` contains non-maximum suppression, `boxes` the arithmetic of boxes, `model` what all steps share, `kernels`
the Triton kernels, and `choose` decides whether they are used.
"""
