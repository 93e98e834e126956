"""TRL's DPOTrainer as a peer: its own data preparation, padding, loss, optimiser and training step."""

import tempfile
from collections.abc import Callable, Sequence

import datasets
import tokenizers
import transformers
import trl

from benchmarks import workload
from benchmarks.peers_torch import ADAMW, CLIP_NORM, Scored, Weights, lora_config, torch_model
from srpo_jax.models.decoder import DecoderConfig


def trl_dpo(
    weights: Weights,
    config: DecoderConfig,
    pairs: Sequence[Sequence[Scored]],
    *,
    beta: float,
    precompute_reference: bool,
    checkpointing: bool = False,
) -> Callable[[], float]:
    """A step of DPO on `pairs` (each the sequences of w and l, which end in workload.EOS) as one batch.

    precompute_reference: the reference's scores are stored before training, as ours are; otherwise TRL's
    default: a second model, or with config.lora_rank > 0 the base, is run in every step.

    On CPUs TRL projects every position of a row to the vocabulary, in parts; on GPUs completions only.
    """
    trainer = make_trainer(weights, config, pairs, beta, precompute_reference, checkpointing)
    return stepper(trainer)


def stepper(trainer: trl.DPOTrainer) -> Callable[[], float]:
    """One step of `trainer.train()` a call, on the first batch: what its loop does, but for logging."""
    batch = next(iter(trainer.get_train_dataloader()))
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_enable()
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    model, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.current_gradient_accumulation_steps = 1  # set by the loop, read by training_step

    def step() -> float:
        loss = trainer.training_step(model, batch)
        trainer.accelerator.clip_grad_norm_(model.parameters(), trainer.args.max_grad_norm)
        optimizer.step()
        model.zero_grad()
        return loss.item()

    return step


def make_trainer(
    weights: Weights,
    config: DecoderConfig,
    pairs: Sequence[Sequence[Scored]],
    beta: float,
    precompute_reference: bool,
    checkpointing: bool = False,
) -> trl.DPOTrainer:
    """The trainer of `trl_dpo`, ready for `train()`, which would take one step."""
    model = torch_model(weights, config)
    own_reference = not (precompute_reference or config.lora_rank)
    with tempfile.TemporaryDirectory() as folder:  # nothing is written to it after this
        return trl.DPOTrainer(
            model=model,
            ref_model=torch_model(weights, config) if own_reference else None,
            peft_config=lora_config(config) if config.lora_rank else None,
            processing_class=number_words(config.vocab_size),
            train_dataset=datasets.Dataset.from_list([_as_words(pair) for pair in pairs]),
            args=trl.DPOConfig(
                output_dir=folder,
                beta=beta,
                precompute_ref_log_probs=precompute_reference,
                gradient_checkpointing=checkpointing,
                bf16=config.dtype == "bfloat16",
                use_cpu=True,
                max_length=None,
                max_steps=1,
                per_device_train_batch_size=len(pairs),
                learning_rate=ADAMW["lr"],
                lr_scheduler_type="constant",
                adam_beta1=ADAMW["betas"][0],
                adam_beta2=ADAMW["betas"][1],
                adam_epsilon=ADAMW["eps"],
                weight_decay=ADAMW["weight_decay"],
                max_grad_norm=CLIP_NORM,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )


def number_words(vocab_size: int) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer for which "<5><17>" is the ids 5, 17: TRL takes text, and tokenises it itself."""
    words = {f"<{i}>": i for i in range(vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<0>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(">", "merged_with_previous")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=f"<{workload.EOS}>", pad_token="<0>"
    )


def _as_words(pair: Sequence[Scored]) -> dict[str, str]:
    (prompt, chosen), (_, rejected) = pair
    words = lambda ids: "".join(f"<{i}>" for i in ids)
    return {"prompt": words(prompt), "chosen": words(chosen), "rejected": words(rejected)}
