"""Tools that know no GAN and no data set: files, statistics, command lines, ops."""

import os

# Before torch is loaded: threads that wait must sleep, not spin. On a busy machine spinning costs a training step four
# to twenty times its arithmetic (0.3 to 1.7 s against 0.07 s for the tiny generator, two threads on two shared cores).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
