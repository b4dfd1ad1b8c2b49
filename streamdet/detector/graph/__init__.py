"""Faster R-CNN with fixed capacities: the shape of every tensor is known before the first pixel is.

Where the compact path keeps what passes (so many proposals, so many detections), this one keeps every slot and gives
empty ones a score below zero. Nothing in it asks the device for a number, so a GPU never waits for the host, and the
whole of it can be captured as one CUDA graph (`capture`). On a CPU it is slower than the compact path.

In the order of the data:

    pixels    bytes as the decoder left them, RGB or YUV 4:2:0 -> RGB
    canvas    RGB -> one normalised batch
    propose   feature maps -> P slots of proposals for each frame
    align     feature maps, proposals -> a small feature map for each slot
    finish    scores, boxes -> D slots of detections for each frame
    step      composes them; one tensor goes in, one comes out
    detector  pictures -> step -> detections

`suppress` holds non-maximum suppression, `boxes` the arithmetic of boxes, `model` what all steps share.
"""
