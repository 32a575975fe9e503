TASKS = ("sine",)
OPTIMIZERS = ("adam", "sgd")
