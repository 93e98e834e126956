"""Evaluation while a model is trained: held-out pairs, and a few documents revised and judged.

Before the first step, behind every config.train.evaluate_every-th and behind the last one, a line of
metrics: `held_out/…`, the objective on all held-out pairs, and `revision/…`, the curve of `curve.py`. All
processes take part; process 0 alone asks the judge. Nothing of it reaches the training: neither its
random numbers nor its data order.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax import Array

from srpo_jax import judges, revision
from srpo_jax.config import Settings
from srpo_jax.data import document_sets
from srpo_jax.data.documents import Document
from srpo_jax.evaluation.curve import Revised, curve
from srpo_jax.judges import Judge
from srpo_jax.models.source import Source
from srpo_jax.prompts import Prompt, Renderer
from srpo_jax.prompts.selection import select
from srpo_jax.reporting.wording import percent
from srpo_jax.runtime import distributed
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Metrics, is_main, read, status
from srpo_jax.training import diagnosis, held_out, reference
from srpo_jax.training.loop import Done, Hook
from srpo_jax.training.pipeline import PairTrees
from srpo_jax.training.step import Programs, TrainStep
from srpo_jax.trees.packing import Packing
from srpo_jax.trees.prefix_tree import Rows

HELD_OUT, REVISION, REFERENCE = "held_out/", "revision/", "reference/"
State = nnx.State[Any, Any]


@dataclasses.dataclass(frozen=True)
class Asked:
    """The documents that are revised, and who judges: nobody but in process 0."""

    documents: list[Document]
    prompts: list[Prompt]
    renderer: Renderer
    judge: Judge | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is evaluated during a run.

    score: `TrainStep.scores`, compiled. data, packing: the held-out pairs. copying: what the reference
    scores say; see `diagnosis.copying`.
    """

    settings: Settings
    workdir: Path
    step: TrainStep
    score: Callable[[State, State, Rows], tuple[dict[str, Array], Array]]
    frozen: State
    data: PairTrees
    packing: Packing
    asked: Asked | None
    copying: Mapping[str, float]

    def __call__(self, model: State) -> dict[str, float]:
        """The line of metrics of these parameters, which are not kept; called by all processes."""
        began = time.perf_counter()
        found = self.held_out(model)
        values = _prefixed(HELD_OUT, found | {"seconds": time.perf_counter() - began})
        if self.asked is not None:
            began = time.perf_counter()
            found = self.revisions(self.asked, model)
            values |= _prefixed(REVISION, found | {"seconds": time.perf_counter() - began})
        return values

    def held_out(self, model: State) -> dict[str, float]:
        """The objective's loss and metrics, means over all held-out pairs."""
        scores = reference.score_all(
            self.data,
            lambda rows: self.score(model, self.frozen, rows),
            self.packing,
            self.step.mesh,
        )
        return held_out.metrics(self.step.objective, self.step.hyper, self.data, scores)

    def revisions(self, asked: Asked, model: State) -> dict[str, float]:
        """The curve of the policy as it is now, drawn with the run's own seed."""
        sampling, renderer = self.settings.sampling, asked.renderer
        ids = revision.revise_ids(
            nnx.merge(self.step.graphdef, model, self.frozen),
            asked.prompts,
            self.settings.evaluate.revisions,
            sampling,
            eos=renderer.stop_ids,
            seed=self.settings.seed,
        )
        revised = Revised(
            tuple(tuple(renderer.tokenizer.decode(y).strip() for y in ys) for ys in ids),
            tuple(tuple(len(y) for y in ys) for ys in ids),
            tuple(tuple(len(y) == sampling.max_new_tokens for y in ys) for ys in ids),
        )

        def judged() -> dict[str, float]:
            assert asked.judge is not None  # process 0 has it
            return curve(asked.judge, asked.documents, revised)

        return distributed.from_main(judged)


def asked(settings: Settings, workdir: Path, source: Source) -> Asked | None:
    """Documents and judge, before anything else is done; None where nothing is revised.

    source: of the tokenizer. Called by all processes. Raises UserError for documents and a judge that
    cannot be had, and for a judge that would be asked over the network again and again.
    """
    train, own = settings.train, settings.evaluate
    if not (train.evaluate_every and train.evaluate_documents):
        return None
    if judges.asks_endpoint(settings.judge):
        raise UserError(
            f"config.judge.name={settings.judge.name!r} asks an endpoint, which is not done during "
            "training: use another judge with --config.judge.name, or no revisions with "
            "--config.train.evaluate_documents=0"
        )
    chosen = document_sets.resolve(own.documents, train.evaluate_split)[0]
    renderer = Renderer(
        chosen.template or settings.data.template, source.tokenizer, settings.data.arguments
    )
    documents, prompts = select(
        document_sets.read(chosen),
        train.evaluate_documents,
        own.max_prompt_tokens,
        {"": renderer},
        f"config.train.evaluate_documents: {chosen.name} ({chosen.split})",
    )
    distributed.require_alike(prompts[""], f"puts other prompts of {chosen.name}")
    loaded: list[Judge] = []
    load = lambda: loaded.append(judges.load(settings.judge, workdir, documents=documents))
    distributed.from_main(load)
    return Asked(documents, prompts[""], renderer, loaded[0] if loaded else None)


def prepare(
    settings: Settings,
    workdir: Path,
    step: TrainStep,
    programs: Programs,
    frozen: State,
    policy: reference.Reference,
    data: PairTrees | None,
    asked: Asked | None,
    copying: Mapping[str, float],
) -> Evaluation | None:
    """What is evaluated during the run, with the reference scores of the held-out pairs, data.

    None where there are no such. frozen: of the model. policy: the reference. Called by all processes.
    """
    if data is None:
        return None
    # As many pairs at once as a part of a training step has: what fits there fits here.
    packing = data.packing(
        settings.train.batch_size // settings.train.accumulate,
        settings.seed,
        parts=mesh_module.batch_parts(step.mesh),
        packed=settings.data.pack,
    )
    if step.objective.needs_reference:
        cache = settings.data.cache
        data.reference = reference.scores(
            "held_out_scores", data, policy, packing, step.mesh, workdir=workdir, cache=cache
        )
    # Without adapters the policy is scored by the reference's program, which is compiled already.
    scored = programs.scores if settings.lora.rank else programs.reference
    return Evaluation(settings, workdir, step, scored, frozen, data, packing, asked, copying)


def begin(
    evaluation: Evaluation | None, log: Metrics, start: int, model: State
) -> tuple[Hook, ...]:
    """The hook that evaluates; before step 1 this evaluates model, which is not kept.

    start: the step that the run goes on from.
    """
    if evaluation is None:
        return ()
    path = evaluation.workdir / "metrics.jsonl"
    # A resumed run warns of what a whole one warns of.
    history = [line for line in read(path) if f"{HELD_OUT}loss" in line] if is_main() else []

    def write(number: int, model: State, more: Mapping[str, float]) -> None:
        values = {**evaluation(model), **more}
        log.write(number, values)
        status(f"step {number}: {_summary(values)}")
        history.append(values)
        diagnosis.report_displacement(history, HELD_OUT)

    if start == 0:
        write(0, model, _prefixed(REFERENCE, evaluation.copying))

    def act(done: Done) -> None:
        assert done.state is not None  # asked for
        write(done.number, done.state.model, {})

    return (Hook(act, evaluation.settings.train.evaluate_every, state=True),)


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in values.items()}


def _summary(values: Mapping[str, float]) -> str:
    """The numbers that people look at."""
    said = [f"held-out loss {values[f'{HELD_OUT}loss']:.4f}"]
    for name, text in (("accuracy", "accuracy"), ("accuracy_improve", "improving")):
        if (share := values.get(HELD_OUT + name)) is not None:
            said.append(f"{text} {percent(share)} %")
    for name, text in (
        ("win_rate_", "win rate against the gold"),
        ("win_rate_own_", "against y_0"),
    ):
        prefix = REVISION + name
        rates = [v for k, v in values.items() if k.removeprefix(prefix).isdecimal()]
        if rates:
            said.append(f"{text} {' '.join(map(percent, rates))} %")
    return ", ".join(said)
