"""Models whose answer is known, to check measurements against."""

from batchscale.theory.noisy_quadratic import NoisyQuadratic as NoisyQuadratic
from batchscale.theory.noisy_quadratic import Optimum as Optimum
