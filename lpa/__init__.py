"""3D label propagation: semantic volumes to instance volumes (paper, section 3.2).

``lpa.label`` is exact and fast; ``lpa.propagate`` is the paper's iteration as written, its reference.
"""

from lpa.connectivity import DEFAULT_CONNECTIVITY
from lpa.label import label
from lpa.propagate import propagate

__all__ = ["DEFAULT_CONNECTIVITY", "label", "propagate"]
