"""3D label propagation: semantic volumes to instance volumes (paper, section 3.2)."""
