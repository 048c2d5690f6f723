"""Networks: ordinary modules that know nothing about pruning."""
