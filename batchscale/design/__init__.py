"""One design across batch sizes: a joint model of all trials, and which trial tells most next."""
