"""The search step: a plan that fits a byte budget."""

from kfp import dsl

from narrowcast.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def search(  # type: ignore[no-untyped-def]
    encoded: dsl.Input[dsl.Dataset],
    backbone: str,
    model: dict,
    width: int,
    inner_width: int,
    batch_size: int,
    learning_rate: float,
    training: dict,
    seed: int,
    method: str,
    budget: str,
    bits: int,
    num_trials: int,
    num_workers: int,
    ray: dict,
    plan: dsl.Output[dsl.Artifact],
):
    """Search the embedding tables' rows, columns and widths for a byte budget, its trials on Ray.

    Args:
        encoded: Encoded data.
        backbone: Model name.
        model: The model's other settings, see `ModelConfig`.
        width: Embedding width D of the full model.
        inner_width: MLET's inner width k for the retrained tables; 0 for plain ones.
        batch_size: Rows a step.
        learning_rate: Step size of the optimisers.
        training: The training's other settings, see `TrainConfig`.
        seed: Seed of initial values and row order.
        method: Search method; `narrowcast methods` lists them.
        budget: Bytes the tables may weigh, such as '200KB', or a ratio to the full tables, such as '1/8'.
        bits: Bits a stored value: 32, 16, 8, 4 or 2.
        num_trials: Settings of the method to try; the best on validation within the budget is kept.
        num_workers: Trials at a time on Ray; 0 runs them in this process without Ray.
        ray: Where to search, see `RaySettings`: empty, in the step; else on a Ray cluster that KubeRay makes for it.
        plan: plan.json and the trials.
    """
    given = dict(locals())
    from narrowcast.step import step

    with step("search"):
        from narrowcast.components.search.run import SearchConfig, search_plan
        from narrowcast.components.train.run import train_config

        alone = {name: value for name, value in training.items() if name != "min_workers"}
        config = SearchConfig(
            training=train_config(
                backbone, model, alone, batch_size=batch_size, learning_rate=learning_rate, seed=seed
            ),
            width=width,
            inner_width=inner_width,
            method=method,
            budget=budget,
            bits=bits,
            num_trials=num_trials,
            num_workers=num_workers,
        )
        if ray:
            from narrowcast.components.train.rayjob import run_step

            on_cpus = {**ray, "gpus_per_worker": 0}  # as trials train, wherever they run
            if ray.get("gpus_per_worker"):
                on_cpus |= {"node_selector": {}, "tolerations": []}  # which lead to nodes with GPUs
            run_step("narrowcast.components.search.component:search", given, outputs=["plan"], ray=on_cpus)
        else:
            search_plan(encoded.path, config, plan.path)
