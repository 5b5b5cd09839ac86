"""Every random choice, as a pure function of its purpose.

A draw is a counter-based hash of ``(seed, epoch, sample_id, view, what, attempt)``; no generator
has a state. So every loader cuts the same crops, threads and ranks do not change a batch, a run
resumes within an epoch by skipping a prefix of the order, and any batch can be drawn again later
for inspection.

`streams` lists the purposes, `host` draws in Numba and NumPy, `device` in torch. The hash is
the finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), absorbed word by word. It is
bit-equal on host and device. Uniforms have 24 bits, which float32 holds exactly.
"""
