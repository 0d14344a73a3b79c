"""Theory to hold measurements against: noisy quadratics, gradient noise, sharpness."""

from batchscale.theory._branches import branches as branches
from batchscale.theory._branches import train_in_stages as train_in_stages
from batchscale.theory._local import Branches as Branches
from batchscale.theory._local import Change as Change
from batchscale.theory._noise_scale import NoiseScale as NoiseScale
from batchscale.theory._noise_scale import noise_scale as noise_scale
from batchscale.theory._noise_scale import noise_scale_of_batches as noise_scale_of_batches
from batchscale.theory._noise_scale import noise_scales as noise_scales
from batchscale.theory._sharpness import Sharpness as Sharpness
from batchscale.theory._sharpness import generalisation as generalisation
from batchscale.theory._sharpness import sharpness as sharpness
from batchscale.theory.noisy_quadratic import NoisyQuadratic as NoisyQuadratic
from batchscale.theory.noisy_quadratic import Optimum as Optimum
