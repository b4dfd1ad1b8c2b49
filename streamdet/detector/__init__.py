"""The seven stages of Faster R-CNN, and where its weights come from.

In the order of the data, a file each:

    input        pictures -> RGB tensors on the device
    preprocess   RGB tensors -> one normalised batch
    features     batch -> feature maps of several strides (backbone and FPN)
    proposals    feature maps -> boxes that may hold an object (RPN)
    roi_pool     feature maps, boxes -> a small feature map for each box
    classify     small feature maps -> a score for each class, and a better box
    postprocess  scores, boxes -> detections in pixels of the frame

`pipeline` composes them. `models` knows the architectures, `weights` where their parameters come from.
Importing this package does not import torch; importing its modules does.
"""
