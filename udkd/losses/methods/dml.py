"""Deep mutual learning: no teacher, students learn from labels and from each other.

Source: Zhang et al., "Deep Mutual Learning", CVPR 2018 (arXiv 1706.00384), section 3.1 (two networks) and
3.3 (more).
"""

from udkd.losses.distill import LossSettings

MUTUAL = LossSettings(alpha=1.0, beta=0.0, gamma=1.0, temperature=1.0, kl="forward")
"""L_i = CE(z_i, y) + mean over j != i of KL(p_j || p_i), at temperature 1: `udkd.losses.distill.distill` with these weights.

The paper updates one network after the other, each on its peers' newest predictions; here all of a step's updates come from
the same forward pass, as in the rest of udkd.
"""
