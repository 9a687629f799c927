"""What every Ray that is started for a step is told, on this machine or on a cluster."""

OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Ray's objects here are small: the training data are files that the workers map into memory."""

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # How often Ray Train looks whether its workers are done; its own default of 2 s costs 4 s at the end of every run.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Watches for cloud machines that are about to be taken away, and its metrics are read by a dashboard that is off.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""Environment of Ray, where the user has not set it."""
