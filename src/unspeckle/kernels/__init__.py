"""What makes networks fast on CPUs: kernels in C++ where PyTorch has nothing as fast, and layers that use them or
oneDNN's packed weights. They are put in the place of a network's plain layers before it draws.

Every kernel has a fallback in plain PyTorch for machines without a compiler or the processor features that it needs,
and is used only if its results agree with the fallback's.
"""
