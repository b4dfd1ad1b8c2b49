"""Measures the detector, the daemon and this machine, and says how many streams they can take together.

    frames, calibrated       what is measured with: real frames; untrained weights that behave like trained ones
    cases, contenders        what is compared: our engines, precisions and batch sizes
    torchvision_forward      what they are compared with
    compare, stats           rounds in turns, and what they say
    floor                    arithmetic of the model over the measured peak of the machine
    plain_loop, decode       a plain loop of OpenCV and torchvision; decoding alone
    daemon, stand_in         the real daemon in a process of its own; the same without a detector
    end_to_end, capacity     one model from file to event, and how many streams fit
    plan, run                which of all that in which order, and for how long
    report, tables, picture  what came of it
    machine, usage           facts of the machine, and what else went on

Importing this package does not import torch; importing its modules does.
"""
