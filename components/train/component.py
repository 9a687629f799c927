"""The training steps: the full model, and the compact model retrained from a plan."""

from kfp import dsl

from narrowcast.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(  # type: ignore[no-untyped-def]
    encoded: dsl.Input[dsl.Dataset],
    backbone: str,
    model: dict,
    width: int,
    inner_width: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    num_workers: int,
    training: dict,
    seed: int,
    ray: dict,
    full_model: dsl.Output[dsl.Model],
):
    """Train the uncompressed model with Ray Train.

    Args:
        encoded: Encoded data.
        backbone: Model name; `narrowcast methods` lists them.
        model: The model's other settings, see `ModelConfig`.
        width: Embedding width D.
        inner_width: MLET's inner width k; 0 trains plain tables.
        epochs: Most passes over the training rows; the epoch best on validation is kept.
        batch_size: Rows a step, over all workers.
        learning_rate: Step size of the optimisers.
        num_workers: Ray Train workers; 0 trains in this process without Ray.
        training: The training's other settings, see `TrainConfig`.
        seed: Seed of initial values and row order.
        ray: Where to train, see `RaySettings`: empty, in the step; else on a Ray cluster that KubeRay makes for it.
        full_model: Checkpoint: weights, plan and metrics.
    """
    given = dict(locals())
    from narrowcast.step import step

    with step("train"):
        from narrowcast.components.train.run import train_config, train_full

        config = train_config(
            backbone,
            model,
            training,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            num_workers=num_workers,
            seed=seed,
        )
        if ray:
            from narrowcast.components.train.rayjob import run_step

            run_step("narrowcast.components.train.component:train", given, outputs=["full_model"], ray=ray)
        else:
            train_full(encoded.path, config, full_model.path, width=width, inner_width=inner_width)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retrain(  # type: ignore[no-untyped-def]
    encoded: dsl.Input[dsl.Dataset],
    plan: dsl.Input[dsl.Artifact],
    backbone: str,
    model: dict,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    num_workers: int,
    training: dict,
    seed: int,
    ray: dict,
    compact_model: dsl.Output[dsl.Model],
):
    """Train the model again from its initial values on the tables that the plan leaves.

    Args:
        encoded: Encoded data.
        plan: The search's plan.
        backbone: Model name.
        model: The model's other settings, see `ModelConfig`.
        epochs: Most passes over the training rows; the epoch best on validation is kept.
        batch_size: Rows a step, over all workers.
        learning_rate: Step size of the optimisers.
        num_workers: Ray Train workers; 0 trains in this process without Ray.
        training: The training's other settings, see `TrainConfig`.
        seed: Seed of initial values and row order.
        ray: Where to train, see `RaySettings`: empty, in the step; else on a Ray cluster that KubeRay makes for it.
        compact_model: Checkpoint: weights, plan and metrics.
    """
    given = dict(locals())
    from narrowcast.step import step

    with step("retrain"):
        from narrowcast.components.train.run import train_config, train_from_plan

        config = train_config(
            backbone,
            model,
            training,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            num_workers=num_workers,
            seed=seed,
        )
        if ray:
            from narrowcast.components.train.rayjob import run_step

            run_step("narrowcast.components.train.component:retrain", given, outputs=["compact_model"], ray=ray)
        else:
            train_from_plan(encoded.path, plan.path, config, compact_model.path)
