"""Measures the detector, the daemon and this machine, and says how many streams they can take together.

    frames            real frames to measure with, and a clip of them
    cases             what is compared: models, engines, precisions, batch sizes
    contenders        detectors made ready to be measured
    compare           rounds in turns, and the statistics of their times
    floor             arithmetic of the model over the measured peak of the machine
    plain_loop        a plain loop of OpenCV and torchvision
    daemon, stand_in  the real daemon in a process of its own; the same without a detector
    end_to_end        one model from file to event, and how many streams fit
    run               all of that in its order, and for how long
    report            the results: JSON, tables, a picture
    machine           facts of the machine, and what else it did meanwhile

Importing this package does not import torch; importing its modules does.
"""
