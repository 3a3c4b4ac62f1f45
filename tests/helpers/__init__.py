"""Models, data and checks that several tests share."""

from .contract import check_gradients, check_state_dict
from .data import binary_data
from .densities import fit_pvalue, total_mass
from .hierarchy import LinearHierarchy, linear_hierarchy
from .linear_classes import LinearClasses, linear_classes
from .linear_gaussian import LinearGaussian, linear_gaussian, linear_vae
from .vae import small_vae

__all__ = [
    "LinearClasses",
    "LinearGaussian",
    "LinearHierarchy",
    "binary_data",
    "check_gradients",
    "check_state_dict",
    "fit_pvalue",
    "linear_classes",
    "linear_gaussian",
    "linear_hierarchy",
    "linear_vae",
    "small_vae",
    "total_mass",
]
