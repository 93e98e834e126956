"""Rounds of online learning: what the policy writes is rewarded by a judge, and learned from.

A round writes config.online.samples completions of each of config.train.batch_size prompts, has the judge
reward them, and updates the policy. `train` is a run of them; `training.online` has the updates.
"""

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from srpo_jax import judges, objectives
from srpo_jax.config import Settings, attempt
from srpo_jax.config.settings import HOW, REPLACED
from srpo_jax.config.workdir import claim
from srpo_jax.data import document_sets
from srpo_jax.data.documents import Document
from srpo_jax.judges import Judge
from srpo_jax.models import creation, loading
from srpo_jax.models.source import Source
from srpo_jax.objectives import ObjectiveSettings
from srpo_jax.objectives.online import adapted
from srpo_jax.prompts import Renderer
from srpo_jax.prompts.selection import select
from srpo_jax.revision import LocalRollout, Rollout, Sampling
from srpo_jax.revision.plan import check_fit
from srpo_jax.runtime import distributed
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Metrics, Progress, status
from srpo_jax.training.best import Compared
from srpo_jax.training.hooks import check_best, report_model
from srpo_jax.training.online import Learner, OnlineStep, with_value_head
from srpo_jax.training.optimizer import make_optimizer, report_schedule
from srpo_jax.training.reference import weights_of
from srpo_jax.training.step import TrainState
from srpo_jax.trees.completions import Completions, Layout
from srpo_jax.trees.order import Order

# A run may go on with another value of these: they do not change what is learned.
# The last ones are settings of other programs.
MAY_CHANGE = (*HOW, *REPLACED, "evaluate.", "pairs.", "recipe.", "alternate.")
UNREAD = ("evaluate_every", "profile_at")  # settings of `train` alone, which phases may share


class OnlineState(NamedTuple):
    """What a checkpoint holds: the parameters, with PPO the value head's too, the optimiser's state, and
    the KL's coefficient. Random keys and the order of the prompts follow from the seed and the round."""

    model: Any
    optimizer: Any
    beta: np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
    """The documents that are written about, the order in which they are drawn, their prompts in token ids,
    and, in process 0, the judge."""

    documents: Sequence[Document]
    order: Order
    prompts: Sequence[tuple[int, ...]]
    renderer: Renderer
    judge: Judge | None
    how: str

    def rewards(self, chosen: Sequence[int], written: Completions) -> np.ndarray:
        """float64 [N, k] of completions of the chosen documents. Called by all processes."""
        k = written.lengths.shape[1]
        texts = [[self.text(written.ids(i, j)) for j in range(k)] for i in range(len(chosen))]
        documents = [self.documents[i] for i in chosen]
        x, golds = [one.prompt for one in documents], [one.gold for one in documents]

        def judged() -> list[list[float]]:
            assert self.judge is not None  # process 0 has it
            found: list[list[float]] = judges.rewards(
                self.judge, self.how, x, golds, texts
            ).tolist()
            return found

        return np.array(distributed.from_main(judged))

    def drawn(self, number: int, count: int) -> list[int]:
        """Which documents round 1, 2, … is about: one epoch after the other, each newly shuffled."""
        found: list[int] = self.order.take((number - 1) * count, number * count).tolist()
        return found

    def text(self, ids: Sequence[int]) -> str:
        """A completion as it is judged: without its end."""
        kept = [token for token in ids if token not in self.renderer.stop_ids]
        return self.renderer.tokenizer.decode(kept).strip()


def train(settings: Settings, workdir: Path) -> bool:
    """One run, to its last checkpoint. Returns False if it was asked to stop early.

    Raises UserError for every setting, file or document at fault, and when the loss stops being finite.
    """
    mesh = mesh_module.of_settings(settings.mesh)
    check(settings)
    report(settings)
    base = attempt.base(settings, workdir)
    source = loading.open_source(base)
    task = prepare_task(settings, workdir, source)
    own(settings, workdir, source, base, task)
    learner, state = prepare_learner(settings, source, task, mesh)
    attempt.keep_start(workdir, (learner.frozen, learner.reference))
    with attempt.saved(settings.train, workdir) as checkpoints, distributed.StopSignal() as stop:
        start, state = checkpoints.restore_latest(state, replace=True) or (0, state)
        total, compared = settings.train.steps, Compared(settings.train)
        if start >= total:
            status(f"{workdir} is finished: round {start} of {total}")
            return True
        if start:
            status(f"resuming at round {start} of {total}")
        policy = learner.step.policy(state.model, learner.frozen)
        rollout = LocalRollout(
            policy,
            sampling(settings),
            stops=task.renderer.stop_ids,
            width=learner.layout.longest,
            seed=settings.seed,
        )
        with (
            Metrics(workdir, start, settings.train.writers, settings.train.project) as log,
            Progress("train_online", total, unit="rounds", done=start) as progress,
        ):
            for number in range(start + 1, total + 1):
                state, metrics = one_round(settings, number, task, rollout, learner, state)
                require_finite(number, metrics, checkpoints)
                if number % settings.train.log_every == 0 or number == total:
                    log.write(number, metrics)
                progress.advance(note=f"reward {metrics['reward']:.3f}")
                stopped = number < total and stop.requested(number)
                if (ends := stopped or number == total) or checkpoints.due(number):
                    log.flush()  # a later attempt writes none of these lines
                    best = compared(number, metrics.get(compared.by))
                    checkpoints.save(number, state, force=ends, best=best)
                if stopped:
                    status(
                        f"stopped at round {number} of {total}; the same command goes on from there"
                    )
                    return False
    return True


def one_round(
    settings: Settings,
    number: int,
    task: Task,
    rollout: Rollout,
    learner: Learner,
    state: OnlineState,
) -> tuple[OnlineState, dict[str, float]]:
    """Write, reward, score once more by the trainer, learn. The state is donated.

    What is written, and in which order it is learned from, follows from (seed, number) alone.
    """
    began, own, beta = time.perf_counter(), settings.online, float(state.beta)
    chosen = task.drawn(number, settings.train.batch_size)
    prompts = [task.prompts[i] for i in chosen]

    rollout.update(learner.step.policy(state.model, learner.frozen))
    written = rollout.generate(prompts, own.samples, draw=number)
    wrote = time.perf_counter()

    rewards = task.rewards(chosen, written)
    rewarded = time.perf_counter()

    lessons = learner.experience(state.model, prompts, written, rewards, beta)
    trained = TrainState(state.model, state.optimizer)
    trained, metrics = learner.learn(trained, lessons, (settings.seed, number))
    if lessons.metrics["unjudged"] == 1:
        status(
            f"warning: round {number} taught nothing: on some completion of each of its prompts "
            f"config.judge.name={settings.judge.name} is silent"
        )
    after = adapted(beta, lessons.metrics["kl"], own.kl_target, own.kl_rate)
    seconds = {
        "seconds_write": wrote - began,
        "seconds_reward": rewarded - wrote,
        "seconds_learn": time.perf_counter() - rewarded,
    }
    said = metrics | lessons.metrics | {"beta": beta} | seconds
    return OnlineState(*trained, np.array(after)), said


def check(settings: Settings) -> None:
    """UserError for settings that contradict each other."""
    own, size = settings.online, settings.train.batch_size
    if size % own.minibatches:
        raise UserError(
            f"config.train.batch_size={size} prompts cannot be cut into "
            f"config.online.minibatches={own.minibatches} equal parts"
        )
    if objectives.get(settings.objective.name).rewards:
        raise UserError(
            f"config.objective.name={settings.objective.name}: train_online trains a policy; a reward "
            "model is trained by `train`, and is the judge here (judge.name=reward)"
        )
    if settings.lora.rank and settings.lora.dropout:
        raise UserError(
            f"config.lora.dropout={settings.lora.dropout}: the policy that learns must be the one that "
            "wrote, so train_online draws no dropout; set it to 0"
        )
    if settings.train.router_loss:
        raise UserError(
            f"config.train.router_loss={settings.train.router_loss}: train_online has no load-balancing "
            "loss; set it to 0"
        )
    check_best(settings.train, evaluated=False)
    make_optimizer(settings.optimizer, updates(settings))
    judges.require_apart(settings.judge, {"config.model.source": settings.model.source})


def report(settings: Settings) -> None:
    """Says what is learned by, and which settings are not read."""
    own = settings.online
    others = " (config.objective is of `train`, and not read)"
    said = others if settings.objective != ObjectiveSettings() else ""
    status(f"objective {own.objective}: beta={own.beta}, samples={own.samples}{said}")
    unread = [f"config.train.{key}" for key in UNREAD if getattr(settings.train, key)]
    if unread:
        status(
            f"train_online evaluates and profiles nothing on the way: {', '.join(unread)} is not read"
        )
    report_schedule(settings.optimizer, updates(settings))


def prepare_task(settings: Settings, workdir: Path, source: Source) -> Task:
    """Documents and judge; UserError for what cannot be had, or is beyond the model's positions."""
    own = settings.online
    renderer = Renderer(settings.data.template, source.tokenizer, settings.data.arguments)
    name = f"config.online.documents: {own.document_set.name} ({own.document_set.split})"
    documents, prompts = select(
        document_sets.read(own.document_set, "config.online"),
        own.count,
        own.max_prompt_tokens,
        {"": renderer},
        name,
    )
    direct = [tuple(prompt.direct) for prompt in prompts[""]]
    check_fit([len(x) for x in direct], settings.sampling.max_new_tokens, source.config.max_length)
    loaded: list[Judge] = []

    def load() -> None:
        judge = judges.load(settings.judge, workdir, documents=documents)
        judges.check_rewards(judge, own.reward, [one.gold for one in documents])
        loaded.append(judge)

    distributed.from_main(load)
    order = Order(len(documents), settings.seed, attempt.rule_of(workdir))
    return Task(documents, order, direct, renderer, loaded[0] if loaded else None, own.reward)


def own(settings: Settings, workdir: Path, source: Source, base: str, task: Task) -> None:
    """Makes the workdir this run's, or checks that it is. Called by all processes."""
    distributed.require_alike(task.prompts, "puts other prompts")
    digest = hashlib.sha256(repr(task.prompts).encode()).hexdigest()
    known = {"tokenizer": source.tokenizer.fingerprint, "documents": digest}

    def agreed() -> None:
        claim(workdir, settings, attempt.identity_of(workdir, base, **known), MAY_CHANGE)
        source.keep(workdir / loading.KEPT)

    distributed.from_main(agreed)


def prepare_learner(
    settings: Settings, source: Source, task: Task, mesh: Mesh
) -> tuple[Learner, OnlineState]:
    """The programs, and the state that a run begins with.

    The reference is the policy as it is here, or config.reference.source.
    """
    own = settings.online
    architecture = loading.decoder_config(settings.model, settings.lora, settings.train.frozen)
    parameters = source.read_parameters() if source.read_parameters else None
    graphdef, trained, frozen = creation.create(architecture, parameters, mesh, settings.seed)
    before = None
    if settings.reference.source:
        before = weights_of(settings.reference.source, source, architecture, mesh)
    elif not settings.lora.rank:
        # A copy of what is trained; with adapters the reference is the model without.
        before = jax.tree.map(jnp.copy, trained), frozen
    if own.objective == "ppo":
        trained = with_value_head(trained, architecture.width, mesh)
    step = make_step(settings, graphdef, mesh)
    layout = Layout.of(
        settings.train.batch_size // own.minibatches,
        parts=mesh_module.batch_parts(mesh) * settings.train.accumulate,
        longest=max(map(len, task.prompts)),
        samples=own.samples,
        tokens=settings.sampling.max_new_tokens,
    )
    programs = step.compile(trained)
    report_model(trained, frozen, mesh)
    state = OnlineState(trained, programs.init(trained), np.array(own.beta))
    return Learner(step, programs, layout, frozen, before), state


def make_step(settings: Settings, graphdef: nnx.GraphDef[Any], mesh: Mesh) -> OnlineStep:
    """The update, with a learning rate that is planned over all updates of all rounds."""
    optimizer, _ = make_optimizer(settings.optimizer, updates(settings), epsilon=1e-5)
    return OnlineStep(
        graphdef,
        optimizer,
        settings.online,
        mesh,
        accumulate=settings.train.accumulate,
        master=settings.optimizer.master,
        seed=settings.seed,
    )


def updates(settings: Settings) -> int:
    """Of a whole run."""
    return settings.train.steps * settings.online.epochs * settings.online.minibatches


def sampling(settings: Settings) -> Sampling:
    """How completions are written: from the whole softmax, at the temperature that the loss knows."""
    temperature = settings.online.temperature
    return dataclasses.replace(settings.sampling, temperature=temperature, top_p=1.0)


def require_finite(number: int, metrics: dict[str, float], checkpoints: Checkpoints) -> None:
    """Ends the run on a loss or gradient that is no number; the last checkpoint is kept."""
    if metrics.pop("finite", 1.0) < 1:
        checkpoints.wait()
        raise UserError(
            f"the loss or its gradient is no number in round {number}; the checkpoint of round "
            f"{checkpoints.latest() or 0} is kept. Lower config.optimizer.learning_rate"
        )
