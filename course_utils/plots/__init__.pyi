from .adapters import across_domains as across_domains
from .bitfit import biases_moved as biases_moved
from .choosing import pareto as pareto, smallest_difference as smallest_difference
from .comparison import (
    differences as differences,
    parameters_and_memory as parameters_and_memory,
    two_kinds_of_luck as two_kinds_of_luck,
)
from .evaluation import reliability_diagram as reliability_diagram
from .ia3 import factors_moved as factors_moved
from .llama import loss_curve as loss_curve
from .lora_family import by_layer as by_layer
from .p_tuning import similarity as similarity
from .parameters_losses_optimisers import paths_on_a_bowl as paths_on_a_bowl
from .prefix_tuning import shares as shares
from .qlora import beside_rounding as beside_rounding, levels as levels
from .quality import accuracy_against_prices as accuracy_against_prices
from .scaling_out import two_curves as two_curves
from .style import Picture as Picture, bars as bars, training_curves as training_curves
